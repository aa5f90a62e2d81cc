//! A host through all its days, under every strategy.

use super::host::{Arrival, Demand, Host};
use super::spec::Spec;
use super::strategy::{Runner, Strategy, layout_for};
use super::synthetic::{DAY_SECS, Synthetic};
use super::tally::Tally;
use super::whole;
use crate::base::ids::VhdId;

/// Minutes in which growth is averaged.
const GROWTH_MINUTES: f64 = 180.0;

/// A strategy on a host.
pub(super) struct Trial {
    pub strategy: Strategy,
    pub host: Host,
    pub runner: Option<Runner>,
    pub tally: Tally,
    step_secs: f64,
    look_secs: f64,
    warmup_secs: f64,
}

impl Trial {
    /// `target_secs`: what a request may take on average.
    pub fn new(strategy: Strategy, host: Host, spec: &Spec, target_secs: f64) -> Trial {
        let runner = (strategy == Strategy::Policy).then(|| Runner::new(spec.moved_a_day, target_secs));
        let minutes = |minutes: u32| f64::from(minutes) * 60.0;
        Trial {
            strategy,
            host,
            runner,
            tally: Tally::default(),
            step_secs: minutes(spec.step),
            look_secs: minutes(spec.look.next_multiple_of(spec.step)),
            warmup_secs: f64::from(spec.warmup) * DAY_SECS,
        }
    }

    /// A VHD is there and has so many extents, and its guest does this; one that is new is placed.
    pub fn update(&mut self, arrival: Arrival, used: u32, demand: Demand, secs: f64) {
        let id = arrival.vhd;
        let is_new = !self.host.vhds.contains_key(&id);
        if is_new {
            let layout = layout_for(self.strategy, &self.host, self.runner.as_ref(), arrival, secs);
            self.tally.arrival(layout.is_some());
            let Some(layout) = layout else { return };
            self.host.arrive(arrival, layout);
        }
        let before = self.host.vhds.get(&id).map_or(0, |vhd| vhd.at.len());
        if before != used as usize {
            self.host.resize(id, used);
        }
        if let Some(vhd) = self.host.vhds.get_mut(&id) {
            vhd.demand = demand;
            let grown = if is_new { 0.0 } else { vhd.at.len() as f64 - before as f64 };
            vhd.growth.add(grown / self.step_secs, self.step_secs / 60.0, GROWTH_MINUTES);
        }
    }

    /// A VHD goes.
    pub fn leave(&mut self, vhd: VhdId) {
        self.host.leave(vhd);
    }

    /// One step: moves go on, guests are served, the policy looks, and all is counted.
    pub fn step(&mut self, secs: f64) {
        self.host.go_on_moving(self.step_secs);
        self.host.serve(self.step_secs / 60.0);
        let looks = secs > 0.0 && whole(secs).is_multiple_of(whole(self.look_secs));
        if let Some(runner) = self.runner.as_mut().filter(|_| looks) {
            runner.look(&mut self.host, secs);
        }
        self.tally.step(&self.host, secs, secs >= self.warmup_secs);
    }
}

/// Host number `index` of a seed, under each strategy.
pub(super) fn synthetic(spec: &Spec, seed: u64, index: u32) -> Vec<Trial> {
    let made = Synthetic::new(spec, seed, index);
    let host = Host::new(&made.disks, spec, seed ^ (u64::from(index) << 40));
    let target = made.guests.first().map_or(0.0, |guest| guest.arrival.target_secs);
    let mut trials: Vec<Trial> =
        Strategy::ALL.iter().map(|strategy| Trial::new(*strategy, host.clone(), spec, target)).collect();
    let steps = spec.days * 1440 / spec.step;
    for trial in &mut trials {
        for step in 0..steps {
            let secs = f64::from(step) * trial.step_secs;
            advance(trial, &made, secs);
            trial.step(secs);
        }
        trial.tally.finish();
    }
    trials
}

/// Guests come and go, grow, and ask.
fn advance(trial: &mut Trial, made: &Synthetic, secs: f64) {
    for guest in made.guests.iter().filter(|guest| guest.comes <= secs) {
        let id = guest.arrival.vhd;
        let is_there = trial.host.vhds.contains_key(&id);
        if guest.goes <= secs {
            trial.leave(id);
        } else if is_there || secs - guest.comes < trial.step_secs {
            // One that could not be placed does not come again.
            trial.update(guest.arrival, guest.used(secs), guest.demand(secs), secs);
        }
    }
}

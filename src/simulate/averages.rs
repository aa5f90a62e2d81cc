//! Averages of what was, as the daemon's histories give them.

use std::collections::VecDeque;

/// What is usual: the median of the hours of the last day, so that what happens for a few hours is not. Before the first hour has
/// ended its average.
#[derive(Clone, Debug, Default)]
pub(super) struct Usual {
    hours: VecDeque<f64>,
    median: f64,
    hour: Mean,
}

impl Usual {
    pub fn add(&mut self, value: f64, minutes: f64) {
        self.hour.add(value);
        if self.hour.count * minutes < 60.0 {
            return;
        }
        self.hours.push_back(std::mem::take(&mut self.hour).value());
        if self.hours.len() > 24 {
            self.hours.pop_front();
        }
        let mut sorted: Vec<f64> = self.hours.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        self.median = sorted[sorted.len() / 2];
    }

    pub fn value(&self) -> f64 {
        if self.hours.is_empty() { self.hour.value() } else { self.median }
    }
}

/// An average that forgets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Average {
    value: f64,
    minutes: f64,
}

impl Average {
    /// Takes the value of `minutes` into an average of the last `of` minutes.
    pub fn add(&mut self, value: f64, minutes: f64, of: f64) {
        self.minutes = (self.minutes + minutes).min(of);
        self.value += (value - self.value) * (minutes / self.minutes);
    }

    pub fn value(&self) -> f64 {
        self.value
    }
}

/// An average since it was last read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1.0;
    }

    pub fn value(&self) -> f64 {
        if self.count > 0.0 { self.sum / self.count } else { 0.0 }
    }
}

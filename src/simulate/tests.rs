use super::host::{Arrival, Demand, DiskSpec, Host};
use super::run::Trial;
use super::service::Service;
use super::*;
use crate::base::ids::{DiskId, VhdId, VmId};
use crate::placement::record::Layout;
use crate::policy::observe::DiskKind;
use crate::policy::rules::Scope;

/// Nanoseconds that a request may take on a host of NVMe disks.
const TARGET_SECS: f64 = 0.000_75;

/// One host under the policy, minute by minute, with guests that do what a test says.
struct Scene {
    trial: Trial,
    guests: Vec<(Arrival, u32, Demand)>,
    minute: u32,
}

fn isolated(disk: u8) -> Layout {
    Layout::Isolated { disk: DiskId(disk), chosen: false }
}

impl Scene {
    fn new(disks: usize, slots: u32, moved_a_day: f64) -> Scene {
        let spec = Spec { step: 1, look: 5, warmup: 0, moved_a_day, skew: 0.3, ..Spec::default() };
        let bought = vec![DiskSpec { kind: DiskKind::Nvme, slots, speed: 1.0 }; disks];
        let trial = Trial::new(Strategy::Policy, Host::new(&bought, &spec, 1), &spec, TARGET_SECS);
        Scene { trial, guests: Vec::new(), minute: 0 }
    }

    /// The same where nobody has a share.
    fn without_shares(mut self) -> Scene {
        self.trial.host.fair = false;
        self
    }

    /// A VHD with so many extents that does `part` of what a disk can.
    fn add(&mut self, layout: Layout, used: u32, part: f64) -> usize {
        let vhd = VhdId(u32::try_from(self.guests.len()).unwrap() + 1);
        let arrival = Arrival { vhd, vm: VmId(vhd.0), extents: 1000, replicas: 1, target_secs: TARGET_SECS };
        self.trial.host.arrive(arrival, layout);
        self.trial.host.resize(vhd, used);
        self.guests.push((arrival, used, demand(part)));
        self.guests.len() - 1
    }

    fn run(&mut self, minutes: u32) {
        for _ in 0..minutes {
            let secs = f64::from(self.minute) * 60.0;
            for (arrival, used, demand) in &self.guests {
                self.trial.update(*arrival, *used, *demand, secs);
            }
            self.trial.step(secs);
            self.minute += 1;
        }
    }

    fn vhd(&self, guest: usize) -> &super::host::SimVhd {
        &self.trial.host.vhds[&self.guests[guest].0.vhd]
    }

    fn disks_of(&self, guest: usize) -> Vec<usize> {
        let on = self.vhd(guest).on.iter().enumerate();
        on.filter(|(_, (count, _))| *count > 0).map(|(disk, _)| disk).collect()
    }

    fn moved(&self) -> u64 {
        self.trial.host.moved
    }
}

fn demand(part: f64) -> Demand {
    let iops = part * Service::of(DiskKind::Nvme, 1.0).most(4096.0);
    Demand { iops, bytes: iops * 4096.0, read_share: 0.7, depth: 32.0 }
}

#[test]
fn the_policy_finds_an_aggressor_by_itself_and_separates_it_from_its_victim() {
    let mut scene = Scene::new(4, 400, 0.2).without_shares();
    let [aggressor, victim] = [scene.add(isolated(0), 40, 0.1), scene.add(isolated(0), 60, 0.1)];
    for disk in 1..4 {
        scene.add(isolated(disk), 50, 0.1);
    }
    scene.run(24 * 60);
    assert_eq!(scene.moved(), 0, "nothing is wrong yet");
    scene.guests[aggressor].2 = Demand { depth: 256.0, ..demand(1.6) };
    scene.run(1);
    assert!(scene.vhd(victim).mean_secs > TARGET_SECS, "the victim waits");
    let mut relief = 0;
    while scene.vhd(victim).mean_secs > TARGET_SECS {
        scene.run(1);
        relief += 1;
        assert!(relief < 60, "no relief: {:?} {:?}", scene.disks_of(aggressor), scene.disks_of(victim));
    }
    println!("relief after {relief} minutes, {} GiB moved by then", scene.moved() >> 30);
    while scene.vhd(aggressor).moves.is_some() || scene.vhd(victim).moves.is_some() {
        scene.run(1);
        assert!(scene.vhd(victim).mean_secs <= TARGET_SECS, "the victim is served while the move goes on");
    }
    let (one, other) = (scene.disks_of(aggressor), scene.disks_of(victim));
    assert!(one.iter().all(|disk| !other.contains(disk)), "{one:?} {other:?}");
    println!("separated, {} GiB moved", scene.moved() >> 30);
    for _ in 0..180 {
        scene.run(1);
        assert!(scene.vhd(victim).mean_secs <= TARGET_SECS, "whatever else is moved, it is served");
    }
    let state = &scene.trial.runner.as_ref().unwrap().state;
    assert!(state.applied.iter().any(|applied| applied.rule.word() == "neighbour"), "{:?}", state.applied);
}

#[test]
fn with_a_share_of_its_disk_the_victim_of_an_aggressor_is_served_in_time() {
    let mut scene = Scene::new(4, 400, 0.2);
    let [aggressor, victim] = [0, 1].map(|_| scene.add(isolated(0), 40, 0.1));
    scene.run(60);
    scene.guests[aggressor].2 = Demand { depth: 256.0, ..demand(1.6) };
    scene.run(1);
    assert!(scene.vhd(victim).mean_secs <= TARGET_SECS && scene.vhd(victim).served == 1.0);
    assert!(scene.vhd(aggressor).mean_secs > TARGET_SECS, "who asks for more than there is waits");
    assert!((scene.vhd(aggressor).served * 1.6 - 0.9).abs() < 1e-6, "and has what is left");
}

#[test]
fn a_steady_load_moves_nothing_once_it_has_come_to_rest() {
    let mut scene = Scene::new(4, 400, 0.2);
    for guest in 0..12_u8 {
        scene.add(isolated(guest % 2), 20, 0.02 + 0.01 * f64::from(guest % 5));
    }
    scene.run(2 * 24 * 60);
    let before = scene.moved();
    assert!(before > 0, "it was uneven");
    scene.run(12 * 60);
    assert_eq!(scene.moved(), before);
}

#[test]
fn a_load_that_swings_moves_no_more_than_the_budget() {
    let mut scene = Scene::new(4, 400, 0.05);
    for guest in 0..8_u8 {
        scene.add(isolated(guest % 4), 20, 0.1);
    }
    for swing in 0..36 {
        for guest in 0..8 {
            scene.guests[guest].2 = demand(if guest % 2 == swing % 2 { 0.45 } else { 0.02 });
        }
        scene.run(120);
    }
    let budget = ((4 * 400_u64) << 30) / 20;
    println!("{} GiB moved in three days, {} GiB a day allowed", scene.moved() >> 30, budget >> 30);
    assert!(scene.moved() <= 3 * budget);
}

#[test]
fn an_isolated_vhd_that_fills_its_disk_is_expanded_before_its_guest_sees_an_error() {
    let mut scene = Scene::new(4, 200, 1.0);
    let filling = scene.add(isolated(0), 20, 0.05);
    scene.add(isolated(1), 40, 0.05);
    // 30 GiB an hour, to twice what its disk has room for.
    while scene.guests[filling].1 < 400 {
        scene.guests[filling].1 += 1;
        scene.run(2);
        assert_eq!(scene.vhd(filling).missing, 0, "no room at {} extents", scene.guests[filling].1);
    }
    assert!(scene.disks_of(filling).len() > 1);
}

#[test]
fn a_vhd_that_gives_back_what_it_had_contracts() {
    let mut scene = Scene::new(4, 400, 0.2);
    let disks = (0..4).map(DiskId).collect();
    let wide = scene.add(Layout::Spanned { disks, width: None, chosen: false }, 200, 0.02);
    for disk in 0..4 {
        scene.add(isolated(disk), 40, 0.1);
    }
    scene.guests[wide].1 = 24;
    scene.run(12 * 60);
    assert_eq!(scene.disks_of(wide).len(), 1);
}

#[test]
fn a_vhd_that_should_survive_a_disk_and_would_not_is_repaired() {
    let mut scene = Scene::new(4, 400, 0.2);
    let precious = scene.add(isolated(0), 40, 0.05);
    let rules = &mut scene.trial.runner.as_mut().unwrap().rules;
    rules.set(Scope::Vhd(VhdId(1)), "survives", "1").unwrap();
    assert_eq!(scene.trial.host.depends()[&VmId(1)].count_ones(), 1, "one disk can take it along");
    scene.run(12 * 60);
    let vhd = scene.vhd(precious);
    assert!(vhd.at.iter().all(|set| set.len() == 2), "{:?}", vhd.layout);
    assert_eq!(scene.trial.host.depends()[&VmId(1)], 0, "none can");
}

#[test]
fn equal_calls_give_equal_results_and_seeds_differ() {
    let spec = Spec::parse("hosts=3 days=2 warmup=1 vhds=12 disks=4").unwrap();
    let told = std::sync::Mutex::new(Vec::new());
    let one = synthetic(&spec, &[1], &|done, all| told.lock().unwrap().push((done, all)));
    let mut told = told.into_inner().unwrap();
    told.sort_unstable();
    assert_eq!(told, [(1, 3), (2, 3), (3, 3)], "each host is told of once");
    assert_eq!(one, synthetic(&spec, &[1], &|_, _| {}));
    assert_ne!(one.rows, synthetic(&spec, &[2], &|_, _| {}).rows);
    for row in &one.rows {
        assert!(row.mean.busy > 0.0 && row.mean.fit > 0.0 && row.mean.touched > 0.0, "{row:?}");
        assert_eq!(row.mean.moved > 0.0, row.strategy == "policy", "{row:?}");
    }
    let policy = &one.rows[3].mean;
    assert!(policy.moved <= 0.01, "{policy:?}");
    let picture = svg(&one);
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n") && picture.contains("all-isolated"));
}

fn traced(text: &str) -> Result<Report, TraceError> {
    let spec = Spec::parse("fleet=ssd:1 disks=4 days=2 warmup=0").unwrap();
    trace(std::io::Cursor::new(text.as_bytes().to_vec()), &spec, &[1])
}

#[test]
fn a_trace_is_followed_line_by_line() {
    let mut text = format!("{HEADER}\n# two VHDs of one VM\n");
    for hour in 0..6_u64 {
        text.push_str(&format!("{},h1,web,root,21474836480,8589934592,{},4096000,0.7\n", hour * 3600, 1000 * hour));
        text.push_str(&format!("{},h2,db,data,21474836480,{},500,4096000,0.5\n", hour * 3600, (hour + 1) << 30));
    }
    text.push_str("21600,h2,db,data,0,0,0,0,0\n25200,h1,web,root,21474836480,8589934592,1,4096,0.7\n");
    let report = traced(&text).unwrap();
    assert_eq!(report.hosts, 2);
    assert!(report.rows.iter().all(|row| row.mean.fit == 1.0 && row.mean.busy > 0.0), "{report:?}");
}

#[test]
fn bad_lines_are_named_by_number() {
    let good = "0,h,v,d,1073741824,4096,1,4096,0.5";
    for (line, says) in [
        ("0,h,v,d,1,1,1,1", "8 fields instead of 9"),
        ("soon,h,v,d,1,1,1,1,0", "seconds is 'soon'"),
        ("0,h,,d,1,1,1,1,0", "vm is empty"),
        ("0,h,v,d,1GiB,1,1,1,0", "size is '1GiB': give a whole number of bytes"),
        ("0,h,v,d,1,2,1,1,0", "used is 2, more than the size 1"),
        ("0,h,v,d,1,1,-1,1,0", "iops is '-1'"),
        ("0,h,v,d,1,1,1,1,2", "read_share is '2': give a number from 0 to 1"),
        ("0,h,v,d,1,1,NaN,1,0", "iops is 'NaN'"),
        ("0,h,v,d,5368709120,1,1,1,0", "another size than before"),
    ] {
        let error = traced(&format!("{HEADER}\n{good}\n\n{line}\n")).unwrap_err().to_string();
        assert!(error.starts_with("line 4 of the trace: ") && error.contains(says), "{line}: {error}");
    }
    let unsorted = traced(&format!("{HEADER}\n10,h,v,d,1,1,1,1,0\n5,h,v,d,1,1,1,1,0\n")).unwrap_err();
    assert!(unsorted.to_string().contains("sort the lines by time"), "{unsorted}");
    assert!(matches!(traced("a,b\n"), Err(TraceError::Header { .. })));
    assert!(matches!(traced(&format!("{HEADER}\n")), Err(TraceError::NothingMeasured { .. })));
}

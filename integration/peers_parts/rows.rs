//! Samples, their medians, and the table.

use serde_json::{Value, json};

use super::cost::Cost;
use super::count;
use super::disks::Kind;
use super::frontend::Outcome;
use super::workloads::Workload;
use crate::lab::fio::Measured;

/// Who serves the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Qsd,
    Spanblk,
    Fio,
}

impl Backend {
    pub const ALL: [Backend; 3] = [Backend::Qsd, Backend::Spanblk, Backend::Fio];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Backend::Qsd => "qemu-storage-daemon",
            Backend::Spanblk => "spanblk",
            Backend::Fio => "fio",
        }
    }
}

/// A figure of a sample: name, and whether it is known of fio, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    Iops,
    P50,
    P99,
    P999,
    /// CPU time of the daemon for a request, in microseconds.
    Cpu,
    /// Context switches of the daemon for a request.
    Switches,
    /// How often the frontend told the daemon of requests, and the other way round, for a request.
    Kicks,
    Wakeups,
}

impl Figure {
    pub const ALL: [Figure; 8] = [
        Figure::Iops,
        Figure::P50,
        Figure::P99,
        Figure::P999,
        Figure::Cpu,
        Figure::Switches,
        Figure::Kicks,
        Figure::Wakeups,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Figure::Iops => "iops",
            Figure::P50 => "p50_us",
            Figure::P99 => "p99_us",
            Figure::P999 => "p999_us",
            Figure::Cpu => "cpu_us_per_io",
            Figure::Switches => "switches_per_io",
            Figure::Kicks => "kicks_per_io",
            Figure::Wakeups => "wakeups_per_io",
        }
    }
}

/// The figures of one measurement, by [`Figure`]; what is not known is not a number.
#[derive(Clone, Copy, Debug)]
pub struct Sample([f64; Figure::ALL.len()]);

impl Sample {
    #[must_use]
    pub fn of_daemon(outcome: &Outcome, cost: Cost) -> Sample {
        let requests = count(outcome.requests);
        Sample([
            outcome.iops,
            outcome.p50_us,
            outcome.p99_us,
            outcome.p999_us,
            cost.cpu_us / requests,
            cost.switches / requests,
            count(outcome.kicks) / requests,
            count(outcome.wakeups) / requests,
        ])
    }

    #[must_use]
    pub fn of_fio(measured: &Measured) -> Sample {
        let unknown = f64::NAN;
        let Measured { iops, p50_us, p99_us, p999_us } = *measured;
        Sample([iops, p50_us, p99_us, p999_us, unknown, unknown, unknown, unknown])
    }

    fn get(&self, figure: Figure) -> f64 {
        self.0[figure as usize]
    }
}

/// One workload on one disk.
#[derive(Debug)]
pub struct Row {
    pub kind: Kind,
    pub workload: &'static Workload,
    /// By [`Backend`].
    samples: [Vec<Sample>; Backend::ALL.len()],
    /// System calls of the daemon for a request, where they could be counted; by [`Backend`].
    pub syscalls: [Option<f64>; Backend::ALL.len()],
}

impl Row {
    #[must_use]
    pub fn new(kind: Kind, workload: &'static Workload) -> Row {
        Row { kind, workload, samples: Default::default(), syscalls: [None; Backend::ALL.len()] }
    }

    pub fn add(&mut self, backend: Backend, sample: Sample) {
        self.samples[backend as usize].push(sample);
    }

    /// The median over all rounds.
    #[must_use]
    pub fn median(&self, backend: Backend, figure: Figure) -> f64 {
        let mut all: Vec<f64> = self.samples[backend as usize].iter().map(|sample| sample.get(figure)).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The median of a backend as a multiple of that of `qemu-storage-daemon`.
    #[must_use]
    pub fn ratio(&self, backend: Backend, figure: Figure) -> f64 {
        self.median(backend, figure) / self.median(Backend::Qsd, figure)
    }

    /// Each goal: what it is, what was reached, and whether that is enough.
    #[must_use]
    pub fn goals(&self) -> Vec<(String, f64, bool)> {
        let goals = self.workload.goals(self.kind);
        let mut all = Vec::new();
        let mut at_least = |what: &str, figure: Figure, goal: Option<f64>, more: bool| {
            let Some(goal) = goal else { return };
            let reached = self.ratio(Backend::Spanblk, figure);
            let (sign, met) = if more { (">=", reached >= goal) } else { ("<=", reached <= goal) };
            all.push((format!("{what} {sign} {goal}"), reached, met));
        };
        at_least("IOPS", Figure::Iops, goals.iops, true);
        at_least("CPU/IO", Figure::Cpu, goals.cpu, false);
        at_least("p99", Figure::P99, goals.p99, false);
        all
    }

    pub fn print(&self) {
        let qsd = |figure| self.median(Backend::Qsd, figure);
        let ours = |figure| self.median(Backend::Spanblk, figure);
        let calls = |backend: Backend| self.syscalls[backend as usize].map_or("-".to_owned(), |n| format!("{n:.2}"));
        println!(
            "   {:<26}{:<5}{:>8.0}{:>7.2}{:>7.0}{:>7.0}{:>7}{:>7.2} |{:>6.2}{:>6.2}{:>9.0}{:>7.2}{:>7.0}{:>7.0}{:>7}{:>7.2} |{:>6.2}",
            self.workload.name,
            self.kind.name(),
            qsd(Figure::Iops),
            qsd(Figure::Cpu),
            qsd(Figure::P50),
            qsd(Figure::P99),
            calls(Backend::Qsd),
            qsd(Figure::Switches),
            self.ratio(Backend::Spanblk, Figure::Iops),
            self.ratio(Backend::Spanblk, Figure::Cpu),
            ours(Figure::Iops),
            ours(Figure::Cpu),
            ours(Figure::P50),
            ours(Figure::P99),
            calls(Backend::Spanblk),
            ours(Figure::Switches),
            self.ratio(Backend::Fio, Figure::Iops),
        );
    }

    /// Everything, for a file.
    #[must_use]
    pub fn json(&self) -> Value {
        let backend = |backend: Backend| {
            let figures = |value: &dyn Fn(Figure) -> f64| -> Value {
                Figure::ALL.map(|figure| (figure.name().to_owned(), json!(value(figure)))).into_iter().collect()
            };
            let rounds: Vec<Value> =
                self.samples[backend as usize].iter().map(|sample| figures(&|figure| sample.get(figure))).collect();
            json!({
                "backend": backend.name(),
                "median": figures(&|figure| self.median(backend, figure)),
                "ratio": figures(&|figure| self.ratio(backend, figure)),
                "syscalls_per_io": self.syscalls[backend as usize],
                "rounds": rounds,
            })
        };
        let goals = self.goals().into_iter();
        json!({
            "workload": self.workload.name,
            "disk": self.kind.name(),
            "backends": Backend::ALL.map(backend),
            "goals": goals.map(|(goal, reached, met)| json!({ "goal": goal, "reached": reached, "met": met })).collect::<Vec<_>>(),
        })
    }
}

pub fn print_heading() {
    println!(
        "   {:<31}{:^43} |{:^56} |{:>6}",
        "", "qemu-storage-daemon: every ratio is to it", "spanblk: ratios of IOPS and CPU, then figures", "fio"
    );
    println!(
        "   {:<26}{:<5}{:>8}{:>7}{:>7}{:>7}{:>7}{:>7} |{:>6}{:>6}{:>9}{:>7}{:>7}{:>7}{:>7}{:>7} |{:>6}",
        "workload",
        "disk",
        "IOPS",
        "us/IO",
        "p50",
        "p99",
        "sys/IO",
        "ctx/IO",
        "IOPS",
        "CPU",
        "IOPS",
        "us/IO",
        "p50",
        "p99",
        "sys/IO",
        "ctx/IO",
        "IOPS"
    );
}

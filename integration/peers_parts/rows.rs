//! Samples, their medians, and the table.

use serde_json::{Value, json};

use super::workloads::{Goals, Kind, Workload};
use lab::cost::Cost;
use lab::fio::Measured;
use lab::tally::{Outcome, count};

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

/// A figure of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    Iops,
    P50,
    P99,
    P999,
    /// CPU time of the daemon for a request, in microseconds; of fio, which is its own frontend, all.
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
        let Measured { iops, p50_us, p99_us, p999_us, cpu_us } = *measured;
        Sample([iops, p50_us, p99_us, p999_us, cpu_us, unknown, unknown, unknown])
    }

    fn get(&self, figure: Figure) -> f64 {
        self.0[figure as usize]
    }
}

/// A goal and what was reached, as multiples of what `qemu-storage-daemon` does.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    pub what: &'static str,
    pub bound: f64,
    /// Whether more than the bound is better.
    pub at_least: bool,
    pub value: f64,
    /// The same as a multiple of raw fio's, and what the bound was of that where it comes from.
    pub of_fio: Option<(f64, f64)>,
}

impl Reached {
    #[must_use]
    pub fn met(&self) -> bool {
        if self.at_least { self.value >= self.bound } else { self.value <= self.bound }
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

    /// Each goal, and what was reached.
    #[must_use]
    pub fn goals(&self) -> Vec<Reached> {
        let Goals { iops, cpu, p99, fio } = self.workload.goals(self.kind);
        let all = [
            ("IOPS", Figure::Iops, iops, true, fio.0),
            ("CPU/IO", Figure::Cpu, cpu, false, fio.1),
            ("p99", Figure::P99, p99, false, None),
        ];
        let reached = all.into_iter().filter_map(|(what, figure, bound, at_least, fio_there)| {
            let (bound, value) = (bound?, self.ratio(Backend::Spanblk, figure));
            let of_fio = fio_there.map(|there| (value / self.ratio(Backend::Fio, figure), bound / there));
            Some(Reached { what, bound, at_least, value, of_fio })
        });
        reached.collect()
    }

    pub fn print(&self) {
        let qsd = |figure| self.median(Backend::Qsd, figure);
        let ours = |figure| self.median(Backend::Spanblk, figure);
        let calls = |backend: Backend| self.syscalls[backend as usize].map_or("-".to_owned(), |n| format!("{n:.2}"));
        println!(
            "   {:<26}{:<5}{:>8.0}{:>7.2}{:>7.0}{:>7.0}{:>7}{:>7.2} |{:>6.2}{:>6.2}{:>9.0}{:>7.2}{:>7.0}{:>7.0}{:>7}{:>7.2} |{:>6.2}{:>6.2}",
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
            self.ratio(Backend::Fio, Figure::Cpu),
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
        let goal = |reached: &Reached| {
            let Reached { what, bound, at_least, value, of_fio } = *reached;
            let of_fio = of_fio.map(|(here, there)| json!({ "reached": here, "bound": there }));
            json!({
                "goal": what, "bound": bound, "at_least": at_least, "reached": value, "met": reached.met(), "of_fio": of_fio
            })
        };
        json!({
            "workload": self.workload.name,
            "disk": self.kind.name(),
            "backends": Backend::ALL.map(backend),
            "goals": self.goals().iter().map(goal).collect::<Vec<Value>>(),
        })
    }
}

pub fn print_heading() {
    println!(
        "   {:<31}{:^43} |{:^56} |{:^12}",
        "", "qemu-storage-daemon", "spanblk, as a multiple; and its own figures", "fio"
    );
    let daemon = ["IOPS", "us/IO", "p50", "p99", "sys/IO", "ctx/IO"].map(|name| format!("{name:>7}")).concat();
    println!("   {:<26}{:<5} {daemon} |  IOPS   CPU  {daemon} |  IOPS   CPU", "workload", "disk");
}

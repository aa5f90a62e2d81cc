//! What fair shares of a disk do for those who ask for little of it, as the daemon gives them (`qos`); a model as well.
//!
//! Who asks for more than its share of a busy disk waits for itself: the others get what they ask for, as long as that is no more than
//! what is shared out evenly, and so on (max-min fairness). Their requests have their turn before what the others have waiting. So each
//! VHD meets a queue in which nobody else takes more than it does itself, and behind that what the disk has begun already. All weights
//! are equal here.

use super::service::{Load, Service, Wait};

/// Requests that a disk which is busy all the time ends before it begins one whose turn has come: the daemon lets it have no more than
/// it takes to keep it busy, so that little is in front. On a disk that works on one at a time, whoever reads one block after the other
/// then waits 2.6 times as long as alone; a throttled disk of a daemon was measured at 2.1 to 2.7 times.
const BEGUN: f64 = 1.5;

/// What is asked of one disk.
#[derive(Clone, Debug)]
pub(super) struct Shares {
    /// Parts of its time, ascending, and the sums of those before each.
    asks: Vec<f64>,
    sums: Vec<f64>,
    /// As much gets served of each.
    level: f64,
}

impl Shares {
    /// `asks`: what each asks for, as part of the disk's time.
    pub fn new(mut asks: Vec<f64>) -> Shares {
        asks.sort_by(f64::total_cmp);
        let mut sums = vec![0.0; asks.len() + 1];
        for (at, ask) in asks.iter().enumerate() {
            sums[at + 1] = sums[at] + ask;
        }
        let count = asks.len();
        let level = if sums[count] <= 1.0 {
            f64::INFINITY
        } else {
            // Whoever asks for less than what is left for each gets it.
            let even = |at: usize| (1.0 - sums[at]) / (count - at) as f64;
            (0..count).find(|at| asks[*at] >= even(*at)).map_or(f64::INFINITY, even)
        };
        Shares { asks, sums, level }
    }

    /// What all ask for, if nobody asks for more than this.
    fn asked_at_most(&self, most: f64) -> f64 {
        let few = self.asks.partition_point(|ask| *ask <= most);
        self.sums[few] + (self.asks.len() - few) as f64 * most
    }

    /// How somebody is served who asks for a part of the disk's time and has so many requests in flight; `load`: what is asked of the
    /// disk, `all`: how it does without shares.
    pub fn wait(&self, disk: &Service, load: Load, all: Wait, ask: f64, in_flight: f64) -> Wait {
        let gets = ask.min(self.level);
        let own = disk.wait(load, self.asked_at_most(ask), in_flight / gets.clamp(f64::MIN_POSITIVE, 1.0));
        let begun = BEGUN * disk.service_secs(load) * all.busy();
        let wait = Wait { asked: ask / gets.max(f64::MIN_POSITIVE), ..own };
        if wait.asked > 1.0 {
            return wait;
        }
        Wait {
            mean_secs: all.mean_secs.min(own.mean_secs + begun),
            p99_secs: all.p99_secs.min(own.p99_secs + begun * 100_f64.ln()),
            ..wait
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::observe::DiskKind;

    fn load(disk: &Service, part: f64) -> Load {
        let iops = part * disk.most(4096.0);
        Load { iops, bytes: iops * 4096.0 }
    }

    #[test]
    fn who_asks_for_little_gets_it_and_the_others_share_the_rest() {
        let shares = Shares::new(vec![1.0, 0.1, 2.0, 0.2]);
        assert!((shares.level - 0.35).abs() < 1e-9);
        let served: f64 = shares.asks.iter().map(|ask| ask.min(shares.level)).sum();
        assert!((served - 1.0).abs() < 1e-9);
        assert_eq!(Shares::new(vec![0.2, 0.8]).level, f64::INFINITY);
        assert!((Shares::new(vec![5.0]).level - 1.0).abs() < 1e-9);
    }

    #[test]
    fn beside_somebody_who_asks_for_all_little_is_served_soon_and_alone_nothing_changes() {
        for kind in [DiskKind::Hdd, DiskKind::Ssd, DiskKind::Nvme] {
            let disk = Service::of(kind, 1.0);
            let (little, much) = (0.05, 2.0);
            let load_of = load(&disk, little + much);
            let all = disk.wait(load_of, little + much, 1.0 + 256.0);
            let shares = Shares::new(vec![little, much]);
            let few = shares.wait(&disk, load_of, all, little, 1.0);
            let many = shares.wait(&disk, load_of, all, much, 256.0);
            let idle = disk.wait(load(&disk, 0.001), 0.001, 1.0).mean_secs;
            println!(
                "{kind:?}: {:.2} and {:.1} x idle, {:.1} without",
                few.mean_secs / idle,
                many.mean_secs / idle,
                all.mean_secs / idle
            );
            assert!(few.served() == 1.0 && few.mean_secs < 3.0 * idle, "{kind:?}: {few:?}");
            assert!((many.served() - 0.95 / 2.0).abs() < 1e-9 && many.mean_secs >= all.mean_secs, "{kind:?}: {many:?}");
            // Nobody else.
            let (load_of, part) = (load(&disk, 0.6), 0.6);
            let all = disk.wait(load_of, part, 32.0);
            assert_eq!(Shares::new(vec![part]).wait(&disk, load_of, all, part, 32.0).mean_secs, all.mean_secs);
        }
    }
}

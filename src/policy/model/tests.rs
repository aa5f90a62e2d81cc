use super::super::judge::tests::pool::{busy_vhd, disk, pool};
use super::*;

/// An NVMe disk that is five times as fast as the two SSDs beside it, and busier than they are.
fn uneven() -> Model {
    let nvme = Disk { kind: DiskKind::Nvme, ..disk(0) };
    let on = |disk| [(disk, 100)];
    let vhds = [(1, 0, 2.5), (2, 1, 0.1), (3, 1, 0.1), (4, 2, 0.2)]
        .map(|(id, disk, part)| busy_vhd(id, None, &on(disk), part));
    let mut pool = pool(vec![nvme, disk(1), disk(2)], vhds.into());
    pool.disks[0].busy = 0.5;
    Model::new(&pool, 0.8, Window::Usual)
}

#[test]
fn a_fast_disk_is_to_be_as_busy_as_others_and_not_busier() {
    let model = uneven();
    let busy: Vec<f64> = model.disks.iter().map(|disk| disk.busy).collect();
    assert!(busy.iter().zip([0.5, 0.2, 0.2]).all(|(busy, is)| (busy - is).abs() < 1e-9), "{busy:?}");
    let goes = |vhd, to| Move { vhd, to: vec![(to, 100)], replicas: 1 };
    let worth = model.worth(&goes(1, 0));
    assert!(worth < 0.0, "from an SSD to the NVMe disk, which is busier: {worth}");
    // The other way round it is worth something, as long as the SSD does not become the busiest.
    let part = Move { vhd: 0, to: vec![(0, 95), (1, 5)], replicas: 1 };
    assert!(model.worth(&part) > 0.0, "{}", model.worth(&part));
    let whole = goes(0, 1);
    assert!(model.worth(&whole) < 0.0, "an SSD cannot do what the NVMe disk does: {}", model.worth(&whole));
}

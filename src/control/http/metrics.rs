//! `/metrics`: Prometheus text.
//!
//! Labels are names of VHDs, VMs and disks and kinds of requests, so there are as many series as there are of them, times a
//! constant. Histograms appear with the first request of their kind.

mod limits;
mod shares;
mod stages;

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::error::{ApiError, wrong_reply};
use super::pool::{ask_pool, blocking};
use super::{Api, Connections};
use crate::control::wire::{ErrorBody, MemberHealth, StoreInfo};
use crate::metrics::{IO_KINDS, IoKind, IoMetricsSet, LATENCY_BUCKETS, Totals};
use crate::owner::command::{Command, JobInfo, MOVE_STEPS, PoolInfo, Reply, VhdInfo, VmInfo};
use crate::placement::job::JobState;
use crate::vhost_user::ReactorStatus;

/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;

/// The first bucket that is told: latencies below 8 microseconds are all alike.
const FIRST_BUCKET: usize = 3;

/// Counters and histograms, as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "daemon",
    responses((status = 200, body = String, content_type = "text/plain"), (status = "default", body = ErrorBody)))]
pub async fn text(State(api): State<Api>) -> Result<impl IntoResponse, ApiError> {
    let pool = ask_pool(&api).await?;
    let Reply::Vhds(vhds) = api.owner.ask(Command::ListVhds).await? else { return Err(wrong_reply()) };
    let Reply::Jobs(jobs) = api.owner.ask(Command::ListJobs).await? else { return Err(wrong_reply()) };
    let Reply::Vms(vms) = api.owner.ask(Command::ListVms).await? else { return Err(wrong_reply()) };
    let host = api.host.clone();
    let text = blocking(move || {
        let mut out = render(&pool, &vhds, &host.store_info(), &host.connections());
        vm_gauges(&mut out, &vms);
        limits::limit_metrics(&mut out, &vhds, &vms);
        shares::share_metrics(&mut out, &pool, &vhds);
        stages::transfer_metrics(&mut out, &pool, &vhds);
        move_metrics(&mut out, &pool, &vhds, &jobs);
        reactor_counters(&mut out, &host.reactors());
        out.text
    });
    let text = text.await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

fn render(pool: &PoolInfo, vhds: &[VhdInfo], store: &StoreInfo, connections: &[Connections]) -> Exposition {
    let mut out = Exposition::default();
    pool_gauges(&mut out, pool, store);
    disk_gauges(&mut out, pool);
    vhd_gauges(&mut out, vhds);
    vhd_capacity_gauges(&mut out, vhds);
    connection_counters(&mut out, connections);
    let of_vhds: Vec<(&str, &IoMetricsSet)> =
        vhds.iter().map(|vhd| (vhd.record.name.as_str(), &vhd.state.metrics)).collect();
    io_metrics(&mut out, "vhd", &of_vhds);
    let of_disks: Vec<(&str, &IoMetricsSet)> =
        pool.disks.iter().map(|disk| (disk.record.name.as_str(), &disk.state.metrics)).collect();
    io_metrics(&mut out, "disk", &of_disks);
    out
}

/// Text under construction.
#[derive(Debug, Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        self.text.write_fmt(line).expect("writing to a string cannot fail");
        self.text.push('\n');
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.line(format_args!("{name} {value}"));
    }

    fn labelled<'a>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        label: &str,
        values: impl Iterator<Item = (&'a str, u64)>,
    ) {
        self.family(name, kind, help);
        for (subject, value) in values {
            self.line(format_args!("{name}{{{label}=\"{subject}\"}} {value}"));
        }
    }
}

fn pool_gauges(out: &mut Exposition, pool: &PoolInfo, store: &StoreInfo) {
    let space = &pool.space;
    out.gauge("spanblk_pool_capacity_bytes", "Room for extents on all disks.", space.capacity);
    out.gauge("spanblk_pool_allocated_bytes", "Room taken by extents.", space.allocated);
    out.gauge(
        "spanblk_pool_reserved_bytes",
        "Room promised to thick VHDs being made and to reservations.",
        space.reserved,
    );
    out.gauge("spanblk_pool_reclaiming_bytes", "Room given back and not allocatable yet.", space.reclaiming);
    out.gauge("spanblk_pool_free_bytes", "Room that can be allocated now.", space.free);
    out.gauge("spanblk_pool_provisioned_bytes", "Sizes of all VHDs together.", space.provisioned);
    out.gauge("spanblk_pool_vhds", "VHDs in the pool.", pool.vhds.into());
    out.gauge("spanblk_pool_requests_waiting", "Guest requests that wait for room.", pool.waiting.into());
    out.gauge("spanblk_store_used_bytes", "Bytes in use of the fullest metadata region.", pool.metadata_used);
    out.gauge("spanblk_store_region_bytes", "Size of a metadata region.", pool.metadata_size);
    let in_sync = |health| u64::from(health == MemberHealth::InSync);
    out.labelled(
        ("spanblk_store_member_in_sync", "gauge", "Whether a region takes part in commits."),
        "disk",
        store.members.iter().map(|member| (member.disk.as_str(), in_sync(member.health))),
    );
}

fn disk_gauges(out: &mut Exposition, pool: &PoolInfo) {
    let disks = || pool.disks.iter().map(|disk| (disk.record.name.as_str(), disk));
    let gauge = |name, help| (name, "gauge", help);
    out.labelled(
        gauge("spanblk_disk_capacity_bytes", "Room for extents on the disk."),
        "disk",
        disks().map(|(name, disk)| (name, disk.space.capacity)),
    );
    out.labelled(
        gauge("spanblk_disk_allocated_bytes", "Room taken by extents on the disk."),
        "disk",
        disks().map(|(name, disk)| (name, disk.space.allocated)),
    );
    out.labelled(
        gauge("spanblk_disk_failed", "Whether the disk has failed."),
        "disk",
        disks().map(|(name, disk)| (name, u64::from(disk.state.is_failed()))),
    );
    out.labelled(
        gauge("spanblk_disk_suspect", "Whether the disk gave errors or took very long several times lately."),
        "disk",
        disks().map(|(name, disk)| (name, u64::from(disk.suspicion.is_some()))),
    );
    out.labelled(
        ("spanblk_disk_reported_errors_total", "counter", "Errors that the disk gave."),
        "disk",
        disks().map(|(name, disk)| (name, disk.errors)),
    );
}

/// What jobs move, and what that costs guests.
fn move_metrics(out: &mut Exposition, pool: &PoolInfo, vhds: &[VhdInfo], jobs: &[JobInfo]) {
    let states = [JobState::Running, JobState::Paused, JobState::Stopped];
    out.labelled(
        ("spanblk_jobs", "gauge", "Jobs that have not ended."),
        "state",
        states.iter().map(|state| (state.word(), jobs.iter().filter(|job| job.record.state == *state).count() as u64)),
    );
    let by_step = |counts: [u64; MOVE_STEPS.len()]| MOVE_STEPS.into_iter().zip(counts);
    out.labelled(("spanblk_moves", "gauge", "Extents being moved."), "step", by_step(pool.moves));
    out.labelled(
        ("spanblk_moves_ended_early_total", "counter", "Moves that ended, at the step, before they were durable."),
        "step",
        by_step(pool.moves_ended_early),
    );
    let name = "spanblk_replicas_made_stale_total";
    out.family(
        name,
        "counter",
        "Replicas that missed a write, or may have, and are not read until they are filled again.",
    );
    out.line(format_args!("{name} {}", pool.made_stale));
    out.labelled(
        ("spanblk_replica_repairs_total", "counter", "Replicas made equal to another one where they are."),
        "result",
        [("ok", pool.repaired), ("failed", pool.not_repaired)].into_iter(),
    );
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let name = "spanblk_job_moved_bytes_total";
    out.family(name, "counter", "Bytes that a job has copied: of jobs that have not ended, and the last that have.");
    for JobInfo { record, .. } in jobs {
        let (job, kind) = (record.id.0, record.kind.word());
        out.line(format_args!("{name}{{job=\"{job}\",kind=\"{kind}\"}} {}", record.bytes_moved));
    }
    let name = "spanblk_disk_copy_bytes_total";
    out.family(name, "counter", "Bytes that jobs have copied from the disk (read) and to it (write).");
    for disk in &pool.disks {
        for kind in [IoKind::Read, IoKind::Write] {
            let (disk, bytes) = (&disk.record.name, load(&disk.state.copy_metrics.kind(kind).bytes));
            out.line(format_args!("{name}{{disk=\"{disk}\",direction=\"{}\"}} {bytes}", kind_name(kind)));
        }
    }
    let waits = |vhd: &VhdInfo| vhd.state.metrics.iter().map(|m| load(&m.copy_waits)).sum();
    out.labelled(
        ("spanblk_vhd_copy_waits_total", "counter", "Requests that waited for a block being copied by a move."),
        "vhd",
        vhds.iter().map(|vhd| (vhd.record.name.as_str(), waits(vhd))),
    );
    let checked = vhds.iter().filter(|vhd| vhd.record.checksums);
    out.labelled(
        ("spanblk_vhd_checksum_errors_total", "counter", "Reads of blocks that were not what had been written there."),
        "vhd",
        checked.map(|vhd| (vhd.record.name.as_str(), load(&vhd.state.checksum_errors))),
    );
}

fn vhd_gauges(out: &mut Exposition, vhds: &[VhdInfo]) {
    let each = || vhds.iter().map(|vhd| (vhd.record.name.as_str(), vhd));
    let gauge = |name, help| (name, "gauge", help);
    out.labelled(
        gauge("spanblk_vhd_size_bytes", "Size that the guest sees."),
        "vhd",
        each().map(|(name, vhd)| (name, vhd.record.size)),
    );
    out.labelled(
        gauge("spanblk_vhd_allocated_bytes", "Room taken by extents of the VHD."),
        "vhd",
        each().map(|(name, vhd)| (name, vhd.allocated)),
    );
    out.labelled(
        gauge("spanblk_vhd_attached", "Whether a frontend is attached."),
        "vhd",
        each().map(|(name, vhd)| (name, u64::from(vhd.attached.is_some()))),
    );
    let sum = |set: &IoMetricsSet, field: fn(&crate::metrics::IoMetrics) -> u64| set.iter().map(field).sum();
    out.labelled(
        ("spanblk_vhd_waits_total", "counter", "Requests that waited for a claim, for room or for an engine slot."),
        "vhd",
        each().map(|(name, vhd)| (name, sum(&vhd.state.metrics, |m| m.waits.load(Ordering::Relaxed)))),
    );
    out.labelled(
        ("spanblk_vhd_malformed_total", "counter", "Malformed requests."),
        "vhd",
        each().map(|(name, vhd)| (name, sum(&vhd.state.metrics, |m| m.malformed.load(Ordering::Relaxed)))),
    );
}

fn vhd_capacity_gauges(out: &mut Exposition, vhds: &[VhdInfo]) {
    let families: [Family<VhdInfo>; 4] = [
        ("spanblk_vhd_quota_bytes", "Slots that the VHD may take at most.", |vhd| vhd.record.capacity.quota),
        ("spanblk_vhd_charged_bytes", "Slots that count against the quota of the VHD.", |vhd| {
            vhd.record.capacity.quota.map(|_| vhd.capacity.charged)
        }),
        ("spanblk_vhd_reservation_bytes", "Slots that the VHD can always take.", |vhd| vhd.record.capacity.reservation),
        (
            "spanblk_vhd_reservation_short_bytes",
            "Slots that cannot be kept free for the reservation of the VHD.",
            |vhd| vhd.record.capacity.reservation.map(|_| vhd.capacity.short),
        ),
    ];
    for (name, help, field) in families {
        let set = vhds.iter().filter_map(|vhd| Some((vhd.record.name.as_str(), field(vhd)?)));
        out.labelled((name, "gauge", help), "vhd", set);
    }
}

/// A VHD's numbers are its VM's, too: whoever wants sums joins them by what `/api/v1/vms` says.
fn vm_gauges(out: &mut Exposition, vms: &[VmInfo]) {
    out.labelled(
        ("spanblk_vm_vhds", "gauge", "VHDs of the VM."),
        "vm",
        vms.iter().map(|vm| (vm.record.name.as_str(), vm.vhds.len() as u64)),
    );
    let families: [Family<VmInfo>; 4] = [
        ("spanblk_vm_quota_bytes", "Slots that the VHDs of the VM may take at most.", |vm| vm.record.capacity.quota),
        ("spanblk_vm_charged_bytes", "Slots that count against the quota of the VM.", |vm| {
            vm.record.capacity.quota.map(|_| vm.capacity.charged)
        }),
        ("spanblk_vm_reservation_bytes", "Slots that the VHDs of the VM can always take together.", |vm| {
            vm.record.capacity.reservation
        }),
        ("spanblk_vm_reservation_short_bytes", "Slots that cannot be kept free for the reservation of the VM.", |vm| {
            vm.record.capacity.reservation.map(|_| vm.capacity.short)
        }),
    ];
    for (name, help, field) in families {
        let set = vms.iter().filter_map(|vm| Some((vm.record.name.as_str(), field(vm)?)));
        out.labelled((name, "gauge", help), "vm", set);
    }
}

fn reactor_counters(out: &mut Exposition, reactors: &ReactorStatus) {
    let name = "spanblk_reactor_busy_seconds_total";
    out.family(name, "counter", "Time that a reactor has worked: neither slept nor looked for something to do.");
    for (reactor, busy_ns) in reactors.busy_ns.iter().enumerate() {
        out.line(format_args!("{name}{{reactor=\"{reactor}\"}} {}.{:09}", busy_ns / NANOS, busy_ns % NANOS));
    }
    let name = "spanblk_virtqueue_moves_total";
    out.family(name, "counter", "Virtqueues that went on at a reactor with less to do.");
    out.line(format_args!("{name} {}", reactors.ring_moves));
}

fn connection_counters(out: &mut Exposition, connections: &[Connections]) {
    let counters: [Counter<Connections>; 3] = [
        ("spanblk_vhd_connections_total", "vhost-user connections accepted.", |c| c.accepted),
        ("spanblk_vhd_connections_refused_total", "Connections turned away because there was one already.", |c| {
            c.refused
        }),
        ("spanblk_vhd_connection_faults_total", "Connections closed because of a bad message.", |c| c.faults),
    ];
    for (name, help, value) in counters {
        out.labelled((name, "counter", help), "vhd", connections.iter().map(|c| (c.vhd.as_str(), value(c))));
    }
}

/// Name, help text, and where the number is, if there is one.
type Family<T> = (&'static str, &'static str, fn(&T) -> Option<u64>);

/// Name, help text, and where the number is.
type Counter<T> = (&'static str, &'static str, fn(&T) -> u64);

fn io_metrics(out: &mut Exposition, label: &str, subjects: &[(&str, &IoMetricsSet)]) {
    let kinds = |&(subject, set): &(&'_ str, &IoMetricsSet)| {
        IO_KINDS.map(|kind| (subject.to_owned(), kind_name(kind), Totals::of(set, kind)))
    };
    let rows: Vec<(String, &str, Totals)> = subjects.iter().flat_map(kinds).collect();
    let counters: [Counter<Totals>; 3] = [
        ("requests", "Requests completed, failed ones included.", |totals| totals.requests),
        ("bytes", "Bytes of the requests that succeeded.", |totals| totals.bytes),
        ("errors", "Requests that failed.", |totals| totals.errors),
    ];
    for (what, help, value) in counters {
        let name = format!("spanblk_{label}_{what}_total");
        out.family(&name, "counter", help);
        for (subject, kind, totals) in &rows {
            out.line(format_args!("{name}{{{label}=\"{subject}\",kind=\"{kind}\"}} {}", value(totals)));
        }
    }
    let name = format!("spanblk_{label}_latency_seconds");
    out.family(&name, "histogram", "Time that requests took, from being taken off the virtqueue to being done.");
    for (subject, kind, totals) in rows.iter().filter(|(_, _, totals)| totals.requests > 0) {
        histogram(out, &name, &format!("{label}=\"{subject}\",kind=\"{kind}\""), totals);
    }
}

#[allow(clippy::cast_precision_loss, reason = "nanoseconds as seconds")]
fn histogram(out: &mut Exposition, name: &str, labels: &str, totals: &Totals) {
    let mut below: u64 = totals.buckets[..FIRST_BUCKET].iter().sum();
    for (index, count) in totals.buckets.iter().enumerate().take(LATENCY_BUCKETS - 1).skip(FIRST_BUCKET) {
        below += count;
        let bound = (1_u64 << index) as f64 / 1e6;
        out.line(format_args!("{name}_bucket{{{labels},le=\"{bound}\"}} {below}"));
    }
    // The counters are read one after the other while requests complete; buckets and count must agree all the same.
    let count = below + totals.buckets[LATENCY_BUCKETS - 1];
    out.line(format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
    out.line(format_args!("{name}_sum{{{labels}}} {}", totals.latency_ns_sum as f64 / 1e9));
    out.line(format_args!("{name}_count{{{labels}}} {count}"));
}

fn kind_name(kind: IoKind) -> &'static str {
    match kind {
        IoKind::Read => "read",
        IoKind::Write => "write",
        IoKind::Flush => "flush",
        IoKind::Discard => "discard",
        IoKind::WriteZeroes => "write_zeroes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::ReactorId;

    #[test]
    fn histograms_are_cumulative_and_sum_up_reactors() {
        let set = IoMetricsSet::new(2);
        set.of(ReactorId(0)).record(IoKind::Read, 4096, 10_000, true);
        set.of(ReactorId(1)).record(IoKind::Read, 4096, 1_000_000, true);
        set.of(ReactorId(1)).record(IoKind::Read, 4096, u64::MAX / 2, false);
        let mut out = Exposition::default();
        io_metrics(&mut out, "vhd", &[("a", &set)]);
        let text = out.text;
        for line in [
            "spanblk_vhd_requests_total{vhd=\"a\",kind=\"read\"} 3",
            "spanblk_vhd_bytes_total{vhd=\"a\",kind=\"read\"} 8192",
            "spanblk_vhd_errors_total{vhd=\"a\",kind=\"read\"} 1",
            "spanblk_vhd_requests_total{vhd=\"a\",kind=\"write\"} 0",
            "spanblk_vhd_latency_seconds_bucket{vhd=\"a\",kind=\"read\",le=\"0.000008\"} 0",
            "spanblk_vhd_latency_seconds_bucket{vhd=\"a\",kind=\"read\",le=\"0.000016\"} 1",
            "spanblk_vhd_latency_seconds_bucket{vhd=\"a\",kind=\"read\",le=\"0.001024\"} 2",
            "spanblk_vhd_latency_seconds_bucket{vhd=\"a\",kind=\"read\",le=\"+Inf\"} 3",
            "spanblk_vhd_latency_seconds_count{vhd=\"a\",kind=\"read\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
        }
        assert!(!text.contains("latency_seconds_bucket{vhd=\"a\",kind=\"write\""), "no empty histograms");
    }
}

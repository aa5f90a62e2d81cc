//! Counts the flushes that reach a disk, and looks at their order: SIGKILL alone cannot show a missing sync, since the
//! kernel keeps what was written.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::daemon::Pool;
use lab::frontend::{Frontend, Options};
use lab::nbd::{Event, LoggedDisk};
use lab::report::Report;
use lab::tools::RunDir;

const MIB: u64 = 1 << 20;

/// Sector and length of the writes; within one block of the VHD.
const SECTOR: u64 = 2048 + 16;
const LEN: usize = 16 << 10;

fn main() -> ExitCode {
    let mut report = Report::new("flushes that reach the disk");
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    if let Some(mut lab) = report.check("pool of two logged disks", || Lab::start(&dir)) {
        report.check("first write: data synced, then the table, then FLUSH completes", || lab.first_write());
        report.check("overwrite: one sync of its own disk, no table write, none on the other disk", || lab.overwrite());
        report.check("many writes, one FLUSH: one sync", || lab.many_writes());
        report.check("FLUSH with nothing written: no sync", || lab.nothing_written());
        report.check("writethrough: every write is synced before it completes", || lab.writethrough());
        report.check("daemon ends cleanly", || lab.pool.stop());
    }
    report.finish()
}

/// The pool: both disks hold data, the first one holds the placement table. The VHDs lie on one disk each.
struct Lab {
    pool: Pool,
    near: Frontend,
    far: Frontend,
    near_disk: LoggedDisk,
    far_disk: LoggedDisk,
    /// Where the data begins on the disk with the table.
    data_start: u64,
}

impl Lab {
    fn start(dir: &RunDir) -> Result<Lab> {
        let near_disk = LoggedDisk::new(dir.disks(), "near", 256 * MIB)?;
        let far_disk = LoggedDisk::new(dir.disks(), "far", 256 * MIB)?;
        let table = near_disk.path().display().to_string();
        let disks = vec![near_disk.path().to_owned(), far_disk.path().to_owned()];
        let mut pool = Pool::create(dir.sockets(), disks, &["--metadata", &table])?;
        pool.serve_all()?;
        pool.create_vhd("near", 16 * MIB, &["--layout", "isolated", "--disks", "near"])?;
        pool.create_vhd("far", 16 * MIB, &["--layout", "isolated", "--disks", "far"])?;
        let shown = pool.json(&["pool", "show"])?;
        let region = shown["store"]["members"][0]["region_bytes"].as_u64().context("region_bytes in pool show")?;
        let near = Frontend::connect(&pool.socket("near"), &Options::for_data())?;
        let far = Frontend::connect(&pool.socket("far"), &Options::for_data())?;
        Ok(Lab { pool, near, far, near_disk, far_disk, data_start: MIB + region })
    }

    /// What both disks did during `body`: the one with the table, then the other.
    fn watch(&mut self, body: impl FnOnce(&mut Lab) -> Result<()>) -> Result<(Vec<Event>, Vec<Event>)> {
        let marks = (self.near_disk.mark()?, self.far_disk.mark()?);
        body(self)?;
        Ok((self.near_disk.since(marks.0)?, self.far_disk.since(marks.1)?))
    }

    fn first_write(&mut self) -> Result<()> {
        let (near, far) = self.watch(|lab| {
            lab.near.ring().write(SECTOR, &[1; LEN])?;
            lab.near.ring().flush()
        })?;
        let start = self.data_start;
        let is_data = |e: &Event| matches!(e, Event::Write(at) if *at >= start);
        let is_table = |e: &Event| matches!(e, Event::Write(at) if *at < start);
        let data = near.iter().rposition(is_data).context("no data was written")?;
        let table = near.iter().rposition(is_table).context("the table was not written")?;
        let first_table = near.iter().position(is_table).context("the table was not written")?;
        let flushed = |range: &[Event]| range.contains(&Event::Flush);
        ensure!(data < first_table, "the table was written before the data: {near:?}");
        ensure!(flushed(&near[data..first_table]), "no sync between data and table: {near:?}");
        ensure!(flushed(&near[table..]), "the table was not synced before FLUSH completed: {near:?}");
        ensure!(far.is_empty(), "the other disk was touched: {far:?}");

        // Data and table on different disks: the same, across both.
        let (_, far) = self.watch(|lab| {
            lab.far.ring().write(SECTOR, &[1; LEN])?;
            lab.far.ring().flush()
        })?;
        ensure!(matches!(far[..], [Event::Write(_), .., Event::Flush]), "data on the other disk: {far:?}");
        Ok(())
    }

    fn overwrite(&mut self) -> Result<()> {
        let (near, far) = self.watch(|lab| {
            lab.far.ring().write(SECTOR, &[2; LEN])?;
            lab.far.ring().flush()
        })?;
        ensure!(matches!(far[..], [Event::Write(_), Event::Flush]), "not one write and one sync: {far:?}");
        ensure!(near.is_empty(), "the disk with the table was touched: {near:?}");
        Ok(())
    }

    fn many_writes(&mut self) -> Result<()> {
        let (_, far) = self.watch(|lab| {
            (0..10).try_for_each(|value| lab.far.ring().write(SECTOR, &[value; LEN]))?;
            lab.far.ring().flush()
        })?;
        let syncs = far.iter().filter(|e| **e == Event::Flush).count();
        ensure!(far.len() == 11 && syncs == 1 && far[10] == Event::Flush, "{far:?}");
        Ok(())
    }

    fn nothing_written(&mut self) -> Result<()> {
        let (near, far) = self.watch(|lab| {
            lab.far.ring().flush()?;
            lab.near.ring().flush()
        })?;
        ensure!(near.is_empty() && far.is_empty(), "{near:?} and {far:?}");
        Ok(())
    }

    fn writethrough(&mut self) -> Result<()> {
        self.far.set_writeback(false)?;
        for value in 0..10 {
            let (_, far) = self.watch(|lab| lab.far.ring().write(SECTOR, &[value; LEN]))?;
            ensure!(matches!(far[..], [Event::Write(_), Event::Flush]), "write {value}: {far:?}");
        }
        // A first write needs the table, too, before it completes.
        let (near, far) = self.watch(|lab| lab.far.ring().write(SECTOR + 4096, &[3; LEN]))?;
        ensure!(matches!(far[..], [Event::Write(_), .., Event::Flush]), "first write: {far:?}");
        ensure!(matches!(near[..], [Event::Write(_), .., Event::Flush]), "table of a first write: {near:?}");
        self.far.set_writeback(true)
    }
}

//! What `ci/demo` shows: a pool of four file-backed disks, an isolated and a spanned VHD on them, and a guest that uses both.
//! Every command is printed before it runs.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::daemon::Pool;
use lab::image::Image;
use lab::machine::{Accel, Drive, Machine, probe_kvm};
use lab::report::Report;
use lab::tools::RunDir;

const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    let mut report = Report::new("demo");
    let Some(dir) = report.check("directories (removed at the end)", RunDir::new) else { return report.finish() };
    let Some(image) = report.check("guest image", Image::build) else { return report.finish() };
    let accel = probe_kvm(&dir, &image).unwrap_or_else(|reason| {
        report.note(&format!("{reason}; the guest is emulated"));
        Accel::Tcg
    });
    let Some(mut pool) = report.check("pool of four disks, one isolated and one spanned VHD", || pool(&dir)) else {
        return report.finish();
    };
    if let Some(mut machine) = report.check("a guest boots on both", || guest(&dir, &image, accel, &pool)) {
        report.check("the guest writes, flushes and verifies on both disks", || write_and_verify(&mut machine));
        report.check("the guest powers off", || machine.power_off());
    }
    report.check("placement map", || {
        for vhd in ["web", "db"] {
            println!("{}", shown(&pool, &["vhd", "map", vhd])?);
        }
        println!("{}", shown(&pool, &["pool", "show"])?);
        Ok(())
    });
    report.check("the daemon stops, the table is consistent", || {
        pool.stop()?;
        pool.check()
    });
    report.finish()
}

fn pool(dir: &RunDir) -> Result<Pool> {
    println!("$ spanblk pool create --size 512MiB disk0.img disk1.img disk2.img disk3.img");
    let mut pool = Pool::create_files(dir.sockets(), dir.disks(), 4, 512 * MIB)?;
    println!("$ spanblk serve disk0.img disk1.img disk2.img disk3.img &");
    let ready = pool.serve_all()?;
    println!("   ready after {} ms", ready.as_millis());
    for (name, options) in
        [("web", &["--layout", "isolated"] as &[&str]), ("db", &["--layout", "spanned", "--queues", "2"])]
    {
        println!("$ spanblk vhd create {name} --size 400MiB {}", options.join(" "));
        pool.create_vhd(name, 400 * MIB, options)?;
    }
    println!("{}", shown(&pool, &["vhd", "list"])?);
    println!("{}", shown(&pool, &["vhd", "show", "db", "--attach", "qemu"])?);
    Ok(pool)
}

fn guest(dir: &RunDir, image: &Image, accel: Accel, pool: &Pool) -> Result<Machine> {
    let drives = [Drive::new("web", &pool.socket("web"), 1), Drive::new("db", &pool.socket("db"), 2)];
    let (machine, took) = Machine::boot(dir, image, accel, &drives)?;
    println!("   QEMU with two vhost-user-blk disks: up after {:.1} s", took.as_secs_f64());
    Ok(machine)
}

fn write_and_verify(machine: &mut Machine) -> Result<()> {
    let answer = machine.agent.run(
        "set -e
         for disk in 'vda ext4 -F' 'vdb xfs -f'; do
             set -- $disk
             /sbin/mkfs.$2 -q $3 /dev/$1
             mkdir /mnt/$1
             mount -t $2 /dev/$1 /mnt/$1
             for i in 1 2 3; do dd if=/dev/urandom of=/mnt/$1/file$i bs=1M count=8 2>/dev/null; done
             md5sum /mnt/$1/file* >/tmp/sums
             umount /mnt/$1
             echo 3 >/proc/sys/vm/drop_caches
             mount -t $2 /dev/$1 /mnt/$1
             md5sum -c /tmp/sums
             umount /mnt/$1
         done",
    )?;
    println!("{answer}");
    ensure!(answer.lines().filter(|l| l.ends_with(": OK")).count() == 6, "not all files are there");
    Ok(())
}

fn shown(pool: &Pool, args: &[&str]) -> Result<String> {
    println!("$ spanblk {}", args.join(" "));
    Ok(pool.cli(args)?.trim_end().to_owned())
}

//! Cloud Hypervisor: the real one where it is installed and KVM works; always a frontend that says the same over the socket.

mod guest_checks;

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_checks::Session;
use lab::agent::Agent;
use lab::daemon::Pool;
use lab::frontend::{Frontend, OLD_CLOUD_HYPERVISOR_CONFIG, Options, feature};
use lab::image::Image;
use lab::machine::{probe_kvm, unprivileged_with_kvm};
use lab::report::Report;
use lab::ring::{Op, Shape};
use lab::tools::{Process, RunDir, wait_for};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};

const MIB: u64 = 1 << 20;
const SHAPE: Shape = Shape { size: 128, buffer_len: MIB };

fn main() -> ExitCode {
    let mut report = Report::new("Cloud Hypervisor");
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    match real(&mut report, &dir) {
        Ok(()) => {}
        Err(reason) => report.skip("a guest under Cloud Hypervisor", &reason),
    }
    let files = dir.disks().join("frontend");
    let sockets = dir.sockets().join("frontend");
    let pool = report.check("pool for the frontend", || {
        fs::create_dir(&files)?;
        fs::create_dir(&sockets)?;
        let mut pool = Pool::create_files(&sockets, &files, 3, 256 * MIB)?;
        pool.serve_all()?;
        pool.create_vhd("one", 64 * MIB, &["--layout", "spanned", "--queues", "4", "--block-size", "512"])?;
        Ok(pool)
    });
    if let Some(mut pool) = pool {
        frontend_checks(&mut report, &pool);
        report.check("the daemon lives and ends cleanly", || {
            ensure!(pool.runs(), "{}", pool.log_tail());
            pool.stop()
        });
    }
    report.finish()
}

/// Runs a guest under Cloud Hypervisor, or says why not.
fn real(report: &mut Report, dir: &RunDir) -> Result<(), String> {
    let version = Command::new("cloud-hypervisor").arg("--version").output();
    let version = version.map_err(|_| "no cloud-hypervisor in PATH".to_owned())?;
    let image = Image::build().map_err(|e| format!("{e:#}"))?;
    let accel = probe_kvm(dir, &image)?;
    report.note(String::from_utf8_lossy(&version.stdout).trim());
    let Some(session) = report.check("pool, disks and sockets", || Session::start(dir, &image, accel)) else {
        return Ok(());
    };
    if let Some((mut agent, mut process)) = report.check("guest boots with three disks", || boot(dir, &image, &session))
    {
        guest_checks::basics(report, &session, &mut agent);
        report.check("guest powers off", || {
            agent.send("sync; poweroff -f")?;
            process.wait_success(Duration::from_secs(30))
        });
        report.check("placement is consistent", || session.consistent());
    }
    report.check("backend ends cleanly", || session.stop());
    Ok(())
}

fn boot(run: &RunDir, image: &Image, session: &Session) -> Result<(Agent, Process)> {
    let dir = run.guest_dir("cloud-hypervisor")?;
    let image = image.place_in(&dir)?;
    let serial = dir.join("control");
    let mut command = unprivileged_with_kvm(&dir, "cloud-hypervisor")?;
    command
        .args(["--cpus", "boot=2", "--memory", "size=256M,shared=on", "--console", "off"])
        .arg("--kernel")
        .arg(&image.kernel)
        .arg("--initramfs")
        .arg(&image.initrd)
        // The only serial port is the command port: kernel messages go to a console that is not there.
        .args(["--cmdline", "console=hvc0 quiet panic=-1 oops=panic random.trust_cpu=on lab.port=ttyS0"])
        .arg("--serial")
        .arg(format!("socket={}", serial.display()))
        .arg("--disk");
    for vhd in &session.vhds {
        let drive = session.drive(vhd);
        let (socket, queues) = (drive.socket.display(), drive.queues);
        command.arg(format!("vhost_user=on,socket={socket},num_queues={queues},queue_size=128"));
    }
    let stderr = fs::File::create(dir.join("stderr"))?;
    let process = Process::start("cloud-hypervisor", command.stdout(Stdio::null()).stderr(stderr))?;
    let stream =
        wait_for("serial socket of cloud-hypervisor", Duration::from_secs(10), || UnixStream::connect(&serial).ok());
    let mut agent = Agent::new(stream.with_context(|| fs::read_to_string(dir.join("stderr")).unwrap_or_default())?);
    agent.wait_answering(Duration::from_secs(60))?;
    Ok((agent, process))
}

fn frontend_checks(report: &mut Report, pool: &Pool) {
    report.check("frontend: negotiation", || negotiation(pool));
    report.check("frontend: four queues carry data", || queues(pool));
    report.check("frontend: cache mode is switched by a configuration write", || cache_mode(pool));
    report.check("frontend: configuration at the old offset", || old_config(pool));
    report.check("frontend: pause, resume, stop and come back", || come_back(pool));
}

fn connect(pool: &Pool, queues: u16) -> Result<Frontend> {
    Frontend::connect(&pool.socket("one"), &Options::cloud_hypervisor(queues, SHAPE))
}

fn negotiation(pool: &Pool) -> Result<()> {
    let frontend = connect(pool, 4)?;
    let wanted = [
        (feature::SEG_MAX, "SEG_MAX"),
        (feature::BLK_SIZE, "BLK_SIZE"),
        (feature::FLUSH, "FLUSH"),
        (feature::TOPOLOGY, "TOPOLOGY"),
        (feature::CONFIG_WCE, "CONFIG_WCE"),
        (feature::MQ, "MQ"),
        (feature::DISCARD, "DISCARD"),
        (feature::WRITE_ZEROES, "WRITE_ZEROES"),
        (feature::INDIRECT_DESC, "INDIRECT_DESC"),
        (feature::EVENT_IDX, "EVENT_IDX"),
        (feature::VERSION_1, "VERSION_1"),
    ];
    for (bit, name) in wanted {
        ensure!(frontend.features & bit != 0, "{name} is not offered");
    }
    ensure!(frontend.features & feature::IN_ORDER == 0, "IN_ORDER is offered, but requests complete in any order");
    ensure!(frontend.features & feature::RO == 0, "a writable disk is offered read-only");
    let protocol = VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    ensure!(frontend.protocol.contains(protocol), "protocol features: only {:?}", frontend.protocol);
    ensure!(frontend.backend_queues >= 4, "only {} queues", frontend.backend_queues);
    ensure!(frontend.capacity() == 64 * MIB / 512, "{} sectors", frontend.capacity());
    let field = |at: usize| u32::from_le_bytes(frontend.config[at..at + 4].try_into().expect("four bytes"));
    ensure!(field(20) == 512, "block size {}", field(20));
    ensure!(frontend.config[32] == 1, "write back is not the default");
    ensure!(field(36) > 0 && field(48) > 0, "discard or write-zeroes limit is 0");
    Ok(())
}

fn queues(pool: &Pool) -> Result<()> {
    let mut frontend = connect(pool, 4)?;
    for (index, ring) in (0_u64..).zip(&mut frontend.rings) {
        // Across extents, at an odd sector.
        let (sector, data) = (index * 8192 + 2047, vec![0x10 + u8::try_from(index)?; 700 * 512]);
        ring.write(sector, &data)?;
        ring.flush()?;
        ensure!(ring.read(sector, 700 * 512)? == data, "queue {index} reads something else");
        ensure!(ring.read(sector - 1, 512)? == [0; 512], "queue {index}: the sector before is not zeros");
    }
    let ring = frontend.ring();
    ring.range_request(Op::WriteZeroes, 2048, 3)?;
    ensure!(ring.read(2048, 4 * 512)?[3 * 512 - 1..][..2] == [0, 0x10], "write zeroes is not exact");
    ring.request(Op::GetId, 0, 20)?;
    let id = ring.data(0, 20)?;
    ensure!(id.iter().all(u8::is_ascii_hexdigit), "serial: {}", String::from_utf8_lossy(&id));
    Ok(())
}

fn cache_mode(pool: &Pool) -> Result<()> {
    let mut frontend = connect(pool, 1)?;
    for on in [false, true] {
        frontend.set_writeback_flagged(on, VhostUserConfigFlags::WRITABLE)?;
        ensure!(frontend.read_config(0, 60)?[32] == u8::from(on), "the field does not show the mode");
        frontend.ring().write(4096, &[7; 4096])?;
    }
    Ok(())
}

fn old_config(pool: &Pool) -> Result<()> {
    let options = Options { config_request: OLD_CLOUD_HYPERVISOR_CONFIG, ..Options::cloud_hypervisor(1, SHAPE) };
    let frontend = Frontend::connect(&pool.socket("one"), &options)?;
    ensure!(frontend.capacity() == 64 * MIB / 512, "{} sectors", frontend.capacity());
    Ok(())
}

fn come_back(pool: &Pool) -> Result<()> {
    let mut frontend = connect(pool, 2)?;
    frontend.ring().write(0, b"still here".repeat(512).as_slice()[..4096].as_ref())?;
    frontend.enable(false)?;
    frontend.enable(true)?;
    let found = frontend.ring().read(0, 4096)?;
    ensure!(found.starts_with(b"still here"), "after the pause: {:?}", &found[..16]);
    frontend.ring().flush()?;
    frontend.enable(false)?;
    let taken = frontend.stop()?;
    ensure!(taken == [3, 0], "requests taken by queue: {taken:?}, not [3, 0]");
    drop(frontend);
    for _ in 0..20 {
        let found = connect(pool, 2)?.ring().read(0, 4096)?;
        ensure!(found.starts_with(b"still here"), "after coming back: {:?}", &found[..16]);
    }
    Ok(())
}

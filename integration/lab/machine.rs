//! A QEMU guest that runs as an unprivileged user.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::agent::Agent;
use super::image::Image;
use super::qmp::Qmp;
use super::tools::{Process, RunDir, UNPRIVILEGED_ID, give_to_guest_user, is_root, unprivileged, wait_for};

/// How the guest's instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By QEMU's emulation.
    Tcg,
}

/// A vhost-user-blk device of a guest.
#[derive(Clone, Debug)]
pub struct Drive {
    /// Device id, unique in the guest.
    pub id: String,
    /// The backend's socket.
    pub socket: PathBuf,
    /// Virtqueues.
    pub queues: u16,
    /// QEMU connects again if the connection is lost.
    comes_back: bool,
}

impl Drive {
    /// A drive.
    #[must_use]
    pub fn new(id: &str, socket: &Path, queues: u16) -> Drive {
        Drive { id: id.to_owned(), socket: socket.to_owned(), queues, comes_back: true }
    }

    /// The guest loses it with its connection.
    #[must_use]
    pub fn that_stays_away(self) -> Drive {
        Drive { comes_back: false, ..self }
    }
}

/// A running guest.
#[derive(Debug)]
pub struct Machine {
    /// Runs commands in it.
    pub agent: Agent,
    /// Steers its QEMU.
    pub qmp: Qmp,
    process: Process,
    dir: PathBuf,
}

/// How a migration went.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// The guest stood still.
    pub down: Duration,
    /// From the beginning to the end.
    pub total: Duration,
}

impl Moved {
    fn of(state: &serde_json::Value) -> Result<Moved> {
        let time = |name: &str| {
            let millis = state[name].as_u64().with_context(|| format!("QEMU does not say {name}: {state}"))?;
            Ok::<_, anyhow::Error>(Duration::from_millis(millis))
        };
        Ok(Moved { down: time("downtime")?, total: time("total-time")? })
    }
}

/// Root ports for hot-plug; slots 1 to this.
const HOTPLUG_PORTS: u16 = 3;

/// Longest start of a guest, emulated and on a loaded machine.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

impl Machine {
    /// Starts a guest with these drives and waits until it takes commands; with the time from start to there.
    ///
    /// # Errors
    /// QEMU refuses, or the guest does not come up; with the end of its console.
    pub fn boot(run: &RunDir, image: &Image, accel: Accel, drives: &[Drive]) -> Result<(Machine, Duration)> {
        let started = Instant::now();
        let dir = run.guest_dir(&format!("guest-{}", unique()))?;
        let process = start_qemu(&dir, &image.place_in(&dir)?, accel, drives, false)?;
        let connected = connect(process, &dir);
        let mut machine = connected.with_context(|| stderr_of(&dir))?;
        machine.wait_ready()?;
        Ok((machine, started.elapsed()))
    }

    /// Starts a QEMU that waits for a guest with these drives, which another QEMU serves still.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn waiting(run: &RunDir, image: &Image, accel: Accel, drives: &[Drive]) -> Result<Machine> {
        let dir = run.guest_dir(&format!("guest-{}", unique()))?;
        let process = start_qemu(&dir, &image.place_in(&dir)?, accel, drives, true)?;
        connect(process, &dir).with_context(|| stderr_of(&dir))
    }

    /// Moves the guest to a QEMU that waits for it; the one it leaves ends. A guest on KVM goes on meanwhile. An emulated one stands
    /// still: on a loaded machine, QEMU 7.2 loses some of what it writes to memory then, also when it has no disk at all.
    ///
    /// # Errors
    /// What either QEMU says, or it takes too long.
    pub fn migrate_to(mut self, target: &mut Machine, accel: Accel) -> Result<Moved> {
        let socket = target.dir.join("incoming");
        // No pause because of the bandwidth, and pages go as fast as they can.
        let parameters = json!({ "downtime-limit": 300, "max-bandwidth": 1_u64 << 40 });
        self.qmp.execute("migrate-set-parameters", parameters)?;
        let stopped = Instant::now();
        if accel == Accel::Tcg {
            self.qmp.execute("stop", json!({}))?;
        }
        self.qmp.execute("migrate", json!({ "uri": format!("unix:{}", socket.display()) }))?;
        let moved = wait_for("end of the migration", Duration::from_secs(120), || {
            let state = match self.qmp.execute("query-migrate", json!({})) {
                Ok(state) => state,
                Err(error) => return Some(Err(error)),
            };
            match state["status"].as_str() {
                Some("completed") => Some(Moved::of(&state)),
                Some("failed" | "cancelled") => Some(Err(anyhow::anyhow!("the migration failed: {state}"))),
                _ => None,
            }
        });
        let moved = moved
            .and_then(|moved| moved)
            .with_context(|| format!("source: {}\ntarget: {}", self.console_tail(), target.console_tail()))?;
        let moved = if accel == Accel::Tcg {
            target.go_on()?;
            Moved { down: stopped.elapsed(), ..moved }
        } else {
            moved
        };
        let complaints = self.complaints();
        anyhow::ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
        self.quit()?;
        Ok(moved)
    }

    /// Lets a guest run that came here standing still. Until all of it is here, QEMU takes the wish and forgets it.
    fn go_on(&mut self) -> Result<()> {
        wait_for("the guest to be here, standing still", Duration::from_secs(20), || {
            let status = self.qmp.execute("query-status", json!({})).ok()?;
            (status["status"] == "paused").then_some(())
        })?;
        self.qmp.execute("cont", json!({}))?;
        Ok(())
    }

    /// The last lines of the kernel's console, and what QEMU complained about.
    #[must_use]
    pub fn console_tail(&self) -> String {
        let console = fs::read(self.dir.join("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("console of the guest:\n{tail}\n{}", stderr_of(&self.dir))
    }

    /// Lines of the kernel's console that tell of a fault of a disk or of the kernel itself.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        const SIGNS: [&str; 7] =
            ["I/O error", "BUG:", "Oops", "is not a head", "hung_task", "blocked for more than", "corrupt"];
        let console = fs::read(self.dir.join("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        console.lines().filter(|l| SIGNS.iter().any(|s| l.contains(s))).map(str::to_owned).collect()
    }

    /// Adds a drive to the running guest, in this slot (from 1).
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn plug(&mut self, drive: &Drive, slot: u16) -> Result<()> {
        assert!((1..=HOTPLUG_PORTS).contains(&slot));
        let address = json!({ "type": "unix", "data": { "path": drive.socket } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false, "reconnect": 1 } });
        self.qmp.execute("chardev-add", json!({ "id": format!("c-{}", drive.id), "backend": backend }))?;
        let device = json!({
            "driver": "vhost-user-blk-pci", "id": drive.id, "chardev": format!("c-{}", drive.id),
            "num-queues": drive.queues, "bus": format!("rp{slot}"),
        });
        self.qmp.execute("device_add", device)?;
        Ok(())
    }

    /// Takes a drive out of the running guest, which must agree.
    ///
    /// # Errors
    /// It does not within 30 s.
    pub fn unplug(&mut self, id: &str) -> Result<()> {
        self.qmp.forget_events();
        // While the slot's indicator still blinks for what came before, QEMU says that the guest is busy.
        wait_for("QEMU to ask the guest for the disk", Duration::from_secs(30), || {
            let asked = self.qmp.execute("device_del", json!({ "id": id }));
            if asked.as_ref().is_err_and(|error| error.to_string().contains("busy")) { None } else { Some(asked) }
        })??;
        self.qmp.wait_event("DEVICE_DELETED").context("the guest did not let go of the disk")?;
        // QEMU lets go of the socket a little after the device.
        let chardev = json!({ "id": format!("c-{id}") });
        wait_for("end of the disk's socket in QEMU", Duration::from_secs(10), || {
            self.qmp.execute("chardev-remove", chardev.clone()).ok()
        })?;
        Ok(())
    }

    /// Presses the reset button and waits until the guest is up again.
    ///
    /// # Errors
    /// It does not come up.
    pub fn reset(&mut self) -> Result<()> {
        self.qmp.execute("system_reset", json!({}))?;
        self.wait_ready()
    }

    /// Waits in short turns, so that a guest that cannot start is told from a slow one.
    fn wait_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            let Err(error) = self.agent.wait_ready(Duration::from_secs(1)) else { return Ok(()) };
            let console = self.console_tail();
            let hopeless = console.contains("Kernel panic") || self.process.exited().is_some();
            if hopeless || started.elapsed() > BOOT_LIMIT {
                bail!("{error:#}\n{console}");
            }
        }
    }

    /// Process id of its QEMU.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Pulls the plug: QEMU ends by itself, the guest is not asked.
    ///
    /// # Errors
    /// QEMU does not end.
    pub fn quit(mut self) -> Result<()> {
        self.qmp.execute("quit", json!({}))?;
        self.process.wait_success(Duration::from_secs(30))
    }

    /// Shuts the guest down from within and waits for QEMU to end.
    ///
    /// # Errors
    /// It does not.
    pub fn power_off(mut self) -> Result<()> {
        self.agent.send("sync; poweroff -f")?;
        self.process.wait_success(Duration::from_secs(60))
    }
}

/// Whether a guest really runs on /dev/kvm: the device may be there and still not run one. The reason if not.
pub fn probe_kvm(run: &RunDir, image: &Image) -> Result<Accel, String> {
    if fs::metadata("/dev/kvm").is_err() {
        return Err("no /dev/kvm".to_owned());
    }
    let booted = (|| -> Result<()> {
        let dir = run.guest_dir("probe")?;
        let mut process = start_qemu(&dir, &image.place_in(&dir)?, Accel::Kvm, &[], false)?;
        let control = dir.join("control");
        let stream = wait_for("QEMU with KVM", Duration::from_secs(10), || {
            UnixStream::connect(&control).ok().map(Some).or_else(|| process.exited().map(|_| None))
        })?;
        let stream = stream.with_context(|| stderr_of(&dir))?;
        let mut agent = Agent::new(stream);
        // Looked at in short turns: QEMU says at once when the processor cannot be used, and then waits for ever.
        for _ in 0..20 {
            if agent.wait_ready(Duration::from_millis(500)).is_ok() {
                return Ok(());
            }
            let complaint = stderr_of(&dir);
            if complaint.contains("KVM") || process.exited().is_some() {
                bail!("{}", complaint.lines().next().unwrap_or("QEMU ended"));
            }
        }
        bail!("no guest came up within 10 s");
    })();
    booted.map(|()| Accel::Kvm).map_err(|e| format!("/dev/kvm is there, but a guest does not run on it: {e}"))
}

fn connect(mut process: Process, dir: &Path) -> Result<Machine> {
    // QEMU makes the command port first and waits for us on it; the rest follows.
    let control = dir.join("control");
    let stream = wait_for("QEMU's command port", Duration::from_secs(20), || {
        UnixStream::connect(&control).ok().map(Some).or_else(|| process.exited().map(|_| None))
    })?;
    let agent = Agent::new(stream.context("QEMU ended at once")?);
    let qmp = Qmp::connect(&dir.join("qmp"))?;
    Ok(Machine { agent, qmp, process, dir: dir.to_owned() })
}

fn start_qemu(dir: &Path, image: &Image, accel: Accel, drives: &[Drive], waits: bool) -> Result<Process> {
    let mut command = match accel {
        Accel::Tcg => unprivileged("qemu-system-x86_64"),
        Accel::Kvm => unprivileged_with_kvm(dir, "qemu-system-x86_64")?,
    };
    let (accel, cpu) = match accel {
        Accel::Kvm => ("kvm", "host"),
        // Fewer features to set up than `max`: the kernel is up sooner.
        Accel::Tcg => ("tcg", "Nehalem"),
    };
    let machine = format!(
        "q35,accel={accel},memory-backend=mem,usb=off,hpet=off,vmport=off,smbus=off,sata=off,graphics=off,pit=on"
    );
    let kernel_line = "console=ttyS0,115200 quiet nokaslr mitigations=off no_timer_check tsc=reliable panic=-1 oops=panic \
                       random.trust_cpu=on lab.port=ttyS1";
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-machine", &machine])
        .args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on", "-m", "256M", "-smp", "2", "-cpu", cpu])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initrd)
        .args(["-append", kernel_line])
        .args(["-chardev", &format!("file,id=console,path={}", dir.join("console").display())])
        .args(["-serial", "chardev:console"])
        .args(["-chardev", &format!("socket,id=control,path={},server=on,wait=on", dir.join("control").display())])
        .args(["-serial", "chardev:control"])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", dir.join("qmp").display())]);
    for slot in 1..=HOTPLUG_PORTS {
        command.args(["-device", &format!("pcie-root-port,id=rp{slot},chassis={slot},slot={slot}")]);
    }
    for drive in drives {
        let (id, socket) = (&drive.id, drive.socket.display());
        let reconnect = if drive.comes_back { ",reconnect=1" } else { "" };
        command.args(["-chardev", &format!("socket,id=c-{id},path={socket}{reconnect}")]);
        let queues = drive.queues;
        command.args(["-device", &format!("vhost-user-blk-pci,id={id},chardev=c-{id},num-queues={queues}")]);
    }
    if waits {
        command.args(["-incoming", &format!("unix:{}", dir.join("incoming").display())]);
    }
    let stderr = fs::File::create(dir.join("stderr"))?;
    command.stdout(Stdio::null()).stderr(stderr);
    Process::start("QEMU", &mut command)
}

/// A VMM as an unprivileged user who may nevertheless use the processor: where /dev/kvm belongs to root alone, a device node of
/// its own lies over /dev/kvm in a mount namespace of its own; the host stays as it is.
///
/// # Errors
/// The node cannot be made.
pub fn unprivileged_with_kvm(dir: &Path, program: &str) -> Result<Command> {
    if !is_root() {
        return Ok(unprivileged(program));
    }
    let device = fs::metadata("/dev/kvm")?.rdev();
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & !0xff));
    let node = dir.join("kvm");
    if !node.exists() {
        let done = Command::new("mknod").arg(&node).args(["c", &major.to_string(), &minor.to_string()]).status()?;
        anyhow::ensure!(done.success(), "mknod failed");
        give_to_guest_user(&node)?;
    }
    let id = UNPRIVILEGED_ID;
    let script = format!(
        "mount --bind {} /dev/kvm && exec setpriv --reuid {id} --regid {id} --clear-groups --no-new-privs --pdeathsig KILL -- \
         {program} \"$@\"",
        node.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c", &script, "sh"]).stdin(Stdio::null());
    Ok(command)
}

fn stderr_of(dir: &Path) -> String {
    fs::read_to_string(dir.join("stderr")).unwrap_or_default()
}

fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

//! What is left with the manager, in one piece, spoilt, and too late.

use std::os::unix::net::{UnixDatagram, UnixListener};

use serde_json::{Value, json};

use super::*;
use crate::base::limits::{MEM_SLOTS_MAX, QUEUES_MAX};
use crate::vhost_user::OwnRights;

const POOL: Uuid = Uuid::from_u128(1);
const VHD: Uuid = Uuid::from_u128(2);

/// A socket that listens, in a directory of its own.
struct Socket {
    directory: tempfile::TempDir,
    listener: UnixListener,
}

impl Socket {
    fn new() -> Socket {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("a.sock")).unwrap();
        Socket { directory, listener }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("a.sock")
    }

    fn identity(&self) -> (u64, u64) {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::symlink_metadata(self.path()).unwrap();
        (meta.dev(), meta.ino())
    }

    fn state(&self, frontends: &[Value]) -> Value {
        json!({
            "vhd": VHD, "path": self.path(), "identity": self.identity(), "writeback": true, "owes_flush": false, "told_size": 0,
            "socket": {"mode": 432, "owner": null}, "connections": 1, "refused": 0, "faults": 0, "reactors": u16::MAX, "frontends": frontends,
            "turn": {"active": null, "shown": null, "stopped": null, "next": frontends.len()},
        })
    }

    /// A VHD with so many frontends, each with so much memory and so many virtqueues, and how many descriptors it has.
    fn held(&self, frontends: usize, regions: usize, queues: usize) -> (HeldVhd, usize) {
        let frontends: Vec<Value> = (0..frontends).map(|id| frontend(id, regions, queues)).collect();
        let (connection, _other) = UnixStream::pair().unwrap();
        let mut fds = vec![OwnedFd::from(self.listener.try_clone().unwrap())];
        for _ in &frontends {
            fds.push(connection.try_clone().unwrap().into());
            let of_device = regions + 4 + 3 * queues;
            fds.extend((0..of_device).map(|_| OwnedFd::from(connection.try_clone().unwrap())));
        }
        let count = fds.len();
        (HeldVhd::from_parts(serde_json::from_value(self.state(&frontends)).unwrap(), fds).unwrap(), count)
    }
}

fn frontend(id: usize, regions: usize, queues: usize) -> Value {
    let far = u64::MAX;
    let region = json!({"guest": far, "len": far, "user": far, "offset": far});
    let ring = json!({
        "size": 1024, "user": [far, far, far], "log": far, "base": 65535, "kick": "eventfd", "has_call": true, "has_error": true,
        "enabled": false, "tracked": false, "is_unlogged": false, "is_broken": false, "reactor": 65534,
    });
    json!({
        "seat": {
            "id": id, "pid": u32::MAX, "uid": u32::MAX, "since": far, "start": far, "return_left_ns": far, "waited": false,
            "superseded": false,
        },
        "device": {
            "active": false, "was_active": false, "said": {"asked": true, "features": far, "protocol": 0}, "acknowledged": far,
            "writeback": false, "size_read": far, "memory": vec![region; regions],
            "inflight": {"offset": far, "queues": 65535, "queue_size": 65535}, "log": {"offset": far, "size": far}, "has_log_call": true,
            "has_channel": true, "rings": vec![ring; queues],
        },
    })
}

/// A message as it lies in the store.
fn carrier(message: &Value, fds: &[OwnedFd]) -> OwnedFd {
    let (carrier, writer) = UnixStream::pair().unwrap();
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    send(&writer, message, &fds).unwrap();
    carrier.into()
}

/// A manager that hears, and keeps so many.
fn manager(max: usize) -> (Manager, UnixDatagram, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let heard = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    heard.set_nonblocking(true).unwrap();
    let manager = Manager::at(directory.path().join("notify").to_str().unwrap(), max).unwrap();
    (manager, heard, directory)
}

fn messages(heard: &UnixDatagram) -> Vec<String> {
    let mut buffer = [0; 256];
    let next = || heard.recv(&mut buffer).ok().map(|len| String::from_utf8_lossy(&buffer[..len]).into_owned());
    std::iter::from_fn(next).collect()
}

#[test]
fn names_are_those_for_this_process_and_of_one_line() {
    let name = name_of(VHD);
    assert_eq!(vhd_of(&name), Some(VHD));
    let (with_other, two_lines) = (format!("stored:{name}"), format!("{name}\nREADY=1"));
    let names = |pid, count, names| passed_names(7, pid, count, names);
    assert_eq!(names(Some("7"), Some("3"), Some(&with_other)), ["stored", &name, ""]);
    assert_eq!(
        names(Some("7"), Some("1"), Some(&two_lines)),
        [format!("{name}READY=1")],
        "it would be told to the manager"
    );
    for (pid, count) in [(None, Some("1")), (Some("8"), Some("1")), (Some("x"), Some("1")), (Some("7"), None)] {
        assert!(names(pid, count, Some(&name)).is_empty(), "{pid:?} {count:?}");
    }
    assert!(names(Some("7"), Some("-1"), None).is_empty() && names(Some("7"), Some("many"), None).is_empty());
    assert_eq!(names(Some("7"), Some("99999999"), None).len(), PASSED_FDS_MAX);
}

#[test]
fn all_of_the_largest_vhd_has_room_and_comes_out_once() {
    files::raise_limit().unwrap();
    let socket = Socket::new();
    let (held, count) = socket.held(2, MEM_SLOTS_MAX, QUEUES_MAX);
    let carrier = pack(POOL, held).unwrap();
    let name = name_of(VHD);
    let again = carrier.try_clone().unwrap();
    let held = unpack(&name, Some(carrier), POOL).unwrap();
    assert_eq!((held.vhd(), held.frontends(), held.into_parts().1.len()), (VHD, 2, count));
    let late = unpack(&name, Some(again), POOL).unwrap_err();
    assert!(matches!(late, LeftError::Empty), "{late}");
}

#[test]
fn what_is_spoilt_is_refused() {
    let socket = Socket::new();
    let name = name_of(VHD);
    let message = |vhd: Value| json!({"version": VERSION, "pool": POOL, "vhd": vhd});
    let good = message(socket.state(&[]));
    let listener = || vec![OwnedFd::from(socket.listener.try_clone().unwrap())];
    let refused = |message: &Value, fds: &[OwnedFd]| unpack(&name, Some(carrier(message, fds)), POOL).unwrap_err();
    unpack(&name, Some(carrier(&good, &listener())), POOL).unwrap();
    let changed = |at: &str, value: Value| {
        let mut message = good.clone();
        *message.pointer_mut(at).unwrap() = value;
        refused(&message, &listener())
    };
    assert!(matches!(changed("/version", json!(VERSION + 1)), LeftError::Version(_)));
    assert!(matches!(changed("/pool", json!(VHD)), LeftError::OtherPool(VHD)));
    assert!(matches!(changed("/vhd/vhd", json!(POOL)), LeftError::OtherVhd(POOL)));
    assert!(matches!(changed("/vhd", json!({})), LeftError::Unreadable(_)));
    assert!(matches!(changed("/vhd/turn/active", json!(0)), LeftError::Held(HeldError::Nonsense(_))));
    assert!(matches!(refused(&good, &[]), LeftError::Held(HeldError::Descriptors { given: 0, needed: 1 })));
    let file = || OwnedFd::from(tempfile::tempfile().unwrap());
    assert!(matches!(refused(&good, &[file()]), LeftError::Held(HeldError::NotASocket { .. })));
    // And what is no message, or no socket, of which nothing may be waited for.
    let (open, _writer) = UnixStream::pair().unwrap();
    for rubbish in [file(), open.into(), UnixDatagram::unbound().unwrap().into(), listener().remove(0)] {
        let refused = unpack(&name, Some(rubbish), POOL).unwrap_err();
        assert!(matches!(refused, LeftError::Unreadable(_)), "{refused}");
    }
    assert!(matches!(unpack(&name, None, POOL), Err(LeftError::Closed)));
    assert!(matches!(unpack("other", Some(file()), POOL), Err(LeftError::Unknown)));
}

#[test]
fn only_what_fits_is_taken_and_the_store_is_empty_then() {
    let socket = Socket::new();
    let name = name_of(VHD);
    let left = || (name.clone(), Some(pack(POOL, socket.held(1, 1, 1).0).unwrap()));
    let take = |passed: Vec<Passed>, sockets: &[(Uuid, PathBuf)]| {
        let (manager, heard, _directory) = manager(9);
        let mut held = HashMap::new();
        Stored::new(&manager, passed).take(POOL, &sockets.iter().cloned().collect(), &mut held);
        (held.len(), messages(&heard))
    };
    let forgotten = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
    let here = [(VHD, socket.path())];
    let unknown = || (String::new(), Some(OwnedFd::from(tempfile::tempfile().unwrap())));
    assert_eq!(take(vec![left(), unknown()], &here), (1, vec![forgotten.clone()]));
    assert_eq!(take(vec![left(), left()], &here), (1, vec![forgotten.clone(), forgotten.clone()]));
    assert_eq!(take(vec![left()], &[(POOL, socket.path())]), (0, vec![forgotten.clone()]), "no such VHD");
    assert_eq!(take(vec![left()], &[(VHD, "/elsewhere/a.sock".into())]), (0, vec![forgotten]), "another directory");
}

#[test]
fn whom_the_manager_cannot_keep_is_disconnected() {
    let leave = |hears: bool| {
        let socket = Socket::new();
        let (manager, heard, _directory) = manager(9);
        let heard = hears.then_some(heard);
        let waiting = Waiting { vhds: vec![socket.held(1, 1, 1).0], paths: Arc::new(OwnRights::default()) };
        waiting.leave(&manager, POOL);
        (socket.path().exists(), heard.map(|heard| messages(&heard)))
    };
    let kept = format!("FDSTORE=1\nFDNAME={}\nFDPOLL=0\n", name_of(VHD));
    assert_eq!(leave(true), (true, Some(vec![kept])));
    assert_eq!(leave(false), (false, None), "the path has gone with its listener");
}

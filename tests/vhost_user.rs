//! The vhost-user side against real frontends and hostile ones, with reactors that only take notes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod vhost_user_support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use spanblk::base::rng::Rng;
use spanblk::placement::record::SocketOwner;
use spanblk::vhost_user::{ServerError, SocketError, SocketSettings};
use spanblk::virtio::features;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol};

use vhost_user_support::{Guest, Host, Note, eventually, raw};

const CONFIG_FLAGS: VhostUserConfigFlags = VhostUserConfigFlags::empty();

#[test]
fn qemu_starts_stops_and_starts_again() {
    let host = Host::new(2);
    let socket = host.add(1, "disk", 2);
    let guest = Guest::new();
    let mut frontend = guest.connect(&socket);
    // What QEMU asks for before it knows anything of the driver.
    let offered = frontend.get_features().unwrap();
    frontend.set_features(offered & features::VHOST_USER_PROTOCOL).unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    assert_eq!(
        protocol,
        Protocol::CONFIG
            | Protocol::MQ
            | Protocol::REPLY_ACK
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::BACKEND_REQ
            | Protocol::INFLIGHT_SHMFD
            | Protocol::LOG_SHMFD
            | Protocol::RESET_DEVICE
    );
    frontend.set_protocol_features(protocol).unwrap();
    assert_eq!(frontend.get_queue_num().unwrap(), 2);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 509);
    frontend.set_owner().unwrap();
    let (_, config) = frontend.get_config(0, 60, CONFIG_FLAGS, &[0; 60]).unwrap();
    assert_eq!(config[..8], (64_u64 << 11).to_le_bytes());
    for queue in 0..2 {
        frontend.set_vring_call(queue, &guest.call).unwrap();
    }
    // The driver is ready.
    frontend.set_features(offered).unwrap();
    frontend.set_mem_table(&guest.regions()).unwrap();
    for queue in 0..2 {
        guest.set_ring(&frontend, queue, 64, 0);
        frontend.set_vring_kick(queue, &guest.kick).unwrap();
    }
    frontend.get_features().unwrap();
    assert!(host.take_notes().is_empty(), "with protocol features, rings are disabled at first");
    for queue in 0..2 {
        frontend.set_vring_enable(queue, true).unwrap();
    }
    frontend.get_features().unwrap();
    let notes = host.take_notes();
    let [Note::Start(first), Note::Start(second)] = &notes[..] else { panic!("{notes:?}") };
    assert_eq!((first.reactor, second.reactor), (0, 1), "queues of a device run in parallel");
    for (index, start) in [first, second].into_iter().enumerate() {
        assert_eq!((usize::from(start.index), start.size, start.next_available), (index, 64, 0));
        assert_eq!(start.addresses, guest.ring_addresses(index, 64));
        assert!(start.event_idx && start.indirect && start.writeback && start.has_kick && start.has_call);
        assert_eq!(start.features, offered);
        assert_eq!(start.regions, 2);
    }
    assert_eq!(host.status(1).rings, 2);

    // Stop, and start again where it stopped.
    host.reactors.pretend_popped(10);
    frontend.set_vring_enable(0, false).unwrap();
    assert_eq!(frontend.get_vring_base(0).unwrap(), 10);
    assert_eq!(frontend.get_vring_base(1).unwrap(), 10);
    assert_eq!(frontend.get_vring_base(1).unwrap(), 10);
    assert_eq!(host.take_notes(), [Note::Stop(first.key), Note::Stop(second.key)]);
    frontend.set_vring_enable(0, true).unwrap();
    frontend.get_features().unwrap();
    assert!(host.take_notes().is_empty(), "a ring that was stopped waits for its kick descriptor");
    frontend.set_vring_kick(0, &guest.kick).unwrap();
    frontend.get_features().unwrap();
    let notes = host.take_notes();
    let [Note::Start(third)] = &notes[..] else { panic!("{notes:?}") };
    assert_eq!(third.next_available, 10);
    assert_ne!(third.key, first.key);
}

#[test]
fn cloud_hypervisor_with_an_answer_to_everything_and_memory_slots() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 1);
    let guest = Guest::new();
    let mut frontend = guest.connect(&socket);
    let offered = frontend.get_features().unwrap();
    let wanted = features::SEG_MAX
        | features::BLOCK_SIZE
        | features::FLUSH
        | features::TOPOLOGY
        | features::MULTI_QUEUE
        | features::CONFIG_WCE
        | features::DISCARD
        | features::WRITE_ZEROES
        | features::EVENT_IDX
        | features::INDIRECT_DESC
        | features::VERSION_1
        | features::VHOST_USER_PROTOCOL;
    assert_eq!(offered & wanted, wanted);
    frontend.set_features(wanted).unwrap();
    let protocol = frontend.get_protocol_features().unwrap()
        & (Protocol::CONFIG | Protocol::MQ | Protocol::CONFIGURE_MEM_SLOTS | Protocol::REPLY_ACK);
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_owner().unwrap();
    frontend.get_config(0, 60, VhostUserConfigFlags::WRITABLE, &[0; 60]).unwrap();
    frontend.set_features(wanted).unwrap();
    for region in guest.regions() {
        frontend.add_mem_region(&region).unwrap();
    }
    guest.set_ring(&frontend, 0, 128, 0);
    frontend.set_vring_call(0, &guest.call).unwrap();
    frontend.set_vring_kick(0, &guest.kick).unwrap();
    frontend.set_vring_enable(0, true).unwrap();
    let notes = host.take_notes();
    assert!(matches!(&notes[..], [Note::Start(start)] if start.size == 128 && start.regions == 2), "{notes:?}");

    // Hotplug: the ring goes on with more memory. Unplug: it is drained first.
    let more = guest.extra_region(0x800_0000);
    frontend.add_mem_region(&more).unwrap();
    assert_eq!(host.take_notes(), [Note::SetMemory { regions: 3 }]);
    frontend.remove_mem_region(&more).unwrap();
    let notes = host.take_notes();
    assert!(matches!(&notes[..], [Note::Stop(_), Note::Start(start)] if start.regions == 2), "{notes:?}");
    frontend.set_vring_enable(0, false).unwrap();
    assert!(matches!(host.take_notes()[..], [Note::Stop(_)]));
}

#[test]
fn without_protocol_features_rings_are_enabled_from_the_start() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 1);
    let guest = Guest::new();
    let frontend = guest.connect(&socket);
    let offered = frontend.get_features().unwrap();
    frontend.set_owner().unwrap();
    frontend.set_features(offered & !features::VHOST_USER_PROTOCOL & !features::FLUSH).unwrap();
    frontend.set_mem_table(&guest.regions()).unwrap();
    guest.set_ring(&frontend, 0, 16, 7);
    frontend.set_vring_kick(0, &guest.kick).unwrap();
    frontend.get_features().unwrap();
    let notes = host.take_notes();
    let [Note::Start(start)] = &notes[..] else { panic!("{notes:?}") };
    assert!(!start.writeback, "a driver that cannot flush gets writethrough");
    assert_eq!(start.next_available, 7);
}

#[test]
fn any_part_of_the_configuration_space_can_be_read() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 3);
    let guest = Guest::new();
    let mut frontend = guest.negotiate(&socket);
    let mut read = |offset, len: u32| {
        let buffer = vec![0; len as usize];
        frontend.get_config(offset, len, CONFIG_FLAGS, &buffer).unwrap().1
    };
    let whole = read(0, 96);
    assert_eq!(whole[34..36], [3, 0]);
    assert_eq!(read(20, 4), 512_u32.to_le_bytes());
    assert_eq!(read(32, 1), [1]);
    assert_eq!(read(90, 100)[6..], [0; 94]);
    assert_eq!(read(0, 256)[..96], whole);
    // Frontends that count from the registers of a PCI transport, with as much as a message holds.
    let far = read(0x100, 0xf00);
    assert_eq!(far[..96], whole);
    assert!(far[96..].iter().all(|byte| *byte == 0));
    assert_eq!(read(0xfff, 1), [0]);
}

#[test]
fn the_cache_mode_follows_the_driver() {
    let host = Host::new(2);
    let socket = host.add(1, "disk", 2);
    let guest = Guest::new();
    let mut frontend = guest.start(&socket, 2);
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    host.take_notes();
    let field = |frontend: &mut vhost::vhost_user::Frontend| frontend.get_config(32, 1, CONFIG_FLAGS, &[0]).unwrap().1;
    frontend.set_config(32, CONFIG_FLAGS, &[0]).unwrap();
    assert_eq!(host.take_notes(), [Note::SetWriteback(false), Note::SetWriteback(false)]);
    assert_eq!((field(&mut frontend), host.status(1).writeback), (vec![0], false));
    frontend.set_config(32, CONFIG_FLAGS, &[0]).unwrap();
    // A driver's nonsense is ignored.
    frontend.set_config(0, CONFIG_FLAGS, &[0xff; 60]).unwrap();
    frontend.set_config(32, CONFIG_FLAGS, &[9]).unwrap();
    assert!(host.take_notes().is_empty());
    assert_eq!(host.events.take(), ["attached 1", "cache mode 1 false"]);

    // The guest does not notice a reconnect, so the mode it chose stays.
    drop(frontend);
    host.wait_for_detach(1);
    let mut frontend = guest.start(&socket, 1);
    let starts: Vec<_> = host.starts();
    assert!(starts.iter().all(|start| !start.writeback));
    assert_eq!(field(&mut frontend), [0]);
    frontend.set_config(0x100 + 32, CONFIG_FLAGS, &[1]).unwrap();
    frontend.set_config(32, CONFIG_FLAGS, &[0]).unwrap();
    frontend.get_features().unwrap();
    assert_eq!(host.take_notes(), [Note::SetWriteback(true), Note::SetWriteback(false)]);
    // A reset device is as new.
    frontend.reset_device().unwrap();
    assert_eq!(field(&mut frontend), [1]);
    assert!(matches!(host.take_notes()[..], [Note::Stop(_)]));
}

#[test]
fn switching_without_a_running_ring_flushes_through_the_next() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 1);
    let guest = Guest::new();
    let mut frontend = guest.start(&socket, 1);
    let base = frontend.get_vring_base(0).unwrap();
    frontend.set_config(32, CONFIG_FLAGS, &[0]).unwrap();
    frontend.set_vring_base(0, u16::try_from(base).unwrap()).unwrap();
    frontend.set_vring_kick(0, &guest.kick).unwrap();
    frontend.get_features().unwrap();
    let notes = host.take_notes();
    let [Note::Start(_), Note::Stop(_), Note::Start(start), Note::SetWriteback(false)] = &notes[..] else {
        panic!("{notes:?}")
    };
    assert!(!start.writeback);
}

#[test]
fn descriptors_change_under_a_running_ring() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 1);
    let guest = Guest::new();
    let frontend = guest.start(&socket, 1);
    host.take_notes();
    frontend.set_vring_call(0, &guest.call).unwrap();
    frontend.set_vring_kick(0, &guest.kick).unwrap();
    // The same ring again is no change; another one is.
    guest.set_addresses(&frontend, 0, 64);
    frontend.get_features().unwrap();
    assert_eq!(host.take_notes(), [Note::SetCall, Note::SetKick { polled: false }]);
    frontend.set_vring_err(0, &guest.call).unwrap();
    frontend.get_features().unwrap();
    assert!(matches!(host.take_notes()[..], [Note::Stop(_), Note::Start(_)]));
    // No kick descriptor: the ring is polled.
    raw::send(&frontend, raw::SET_VRING_KICK, &0x100_u64.to_ne_bytes(), &[]);
    frontend.get_features().unwrap();
    assert_eq!(host.take_notes(), [Note::SetKick { polled: true }]);
    // Other features, other memory: rings are drained, and go on.
    frontend.set_features(guest.features & !features::EVENT_IDX).unwrap();
    frontend.get_features().unwrap();
    let notes = host.take_notes();
    assert!(matches!(&notes[..], [Note::Stop(_), Note::Start(start)] if !start.event_idx), "{notes:?}");
    frontend.set_mem_table(&guest.regions()[..1]).unwrap();
    frontend.get_features().unwrap();
    let notes = host.take_notes();
    assert!(matches!(&notes[..], [Note::Stop(_), Note::Start(start)] if start.regions == 1), "{notes:?}");
}

#[test]
fn frontends_reconnect_even_while_rings_are_being_drained() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 1);
    let other = host.add(2, "other", 1);
    let guest = Guest::new();
    for _ in 0..20 {
        drop(guest.start(&socket, 1));
    }
    let frontend = guest.start(&socket, 1);
    assert_eq!(host.status(1).refused, 0);

    let memory = host.reactors.last_memory();
    // A hung disk: the ring does not stop. The next connection waits for it, a third is turned away.
    host.reactors.hang(true);
    drop(frontend);
    let mut next = UnixStream::connect(&socket).unwrap();
    raw::write(&mut next, raw::GET_FEATURES, &[]);
    let mut third = UnixStream::connect(&socket).unwrap();
    assert_eq!(third.read(&mut [0; 1]).unwrap(), 0);
    next.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(next.read(&mut [0; 1]).is_err(), "not its turn yet");
    assert!(memory.upgrade().is_some(), "memory stays mapped until the ring is drained");
    // Nobody else has to wait.
    guest.start(&other, 1).get_features().unwrap();
    host.reactors.hang(false);
    next.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    next.read_exact(&mut [0; 20]).unwrap();
    assert!(memory.upgrade().is_none());
}

#[test]
fn half_a_message_stalls_only_itself() {
    let host = Host::new(1);
    let guest = Guest::new();
    let mut half = UnixStream::connect(host.add(1, "half", 1)).unwrap();
    let message = raw::message(raw::SET_FEATURES, &0_u64.to_ne_bytes());
    let (begin, end) = message.split_at(15);
    half.write_all(begin).unwrap();
    guest.start(&host.add(2, "whole", 1), 1).get_features().unwrap();
    half.write_all(end).unwrap();
    raw::write(&mut half, raw::GET_FEATURES, &[]);
    half.read_exact(&mut [0; 20]).unwrap();
    // An end within a message is noticed.
    half.write_all(begin).unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    // Closed; with a reset, since the daemon has not read what came before the end.
    let closed = half.read(&mut [0; 1]);
    assert!(matches!(&closed, Ok(0)) || closed.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    host.wait_for_detach(1);
    assert_eq!(host.status(1).faults, 1);
}

#[test]
fn impossible_wishes_end_the_connection_and_nothing_else() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 2);
    let neighbour = host.add(2, "neighbour", 1);
    let guest = Guest::new();
    let neighbour = guest.start(&neighbour, 1);
    let state = |index: u32, num: u32| [index.to_ne_bytes(), num.to_ne_bytes()].concat();
    let wishes = [
        (raw::SET_FEATURES, u64::MAX.to_ne_bytes().to_vec()),
        (raw::SET_PROTOCOL_FEATURES, u64::MAX.to_ne_bytes().to_vec()),
        (raw::SET_VRING_NUM, state(2, 64)),
        (raw::SET_VRING_NUM, state(u32::MAX, 64)),
        (raw::SET_VRING_NUM, state(0, 0)),
        (raw::SET_VRING_NUM, state(0, 63)),
        (raw::SET_VRING_NUM, state(0, 2048)),
        (raw::SET_VRING_NUM, state(0, 1 << 16)),
        (raw::SET_VRING_BASE, state(0, 1 << 16)),
        (raw::GET_VRING_BASE, state(7, 0)),
        (raw::SET_VRING_ENABLE, state(2, 1)),
        (raw::SET_VRING_ENABLE, state(0, 2)),
        (raw::SET_VRING_KICK, 0_u64.to_ne_bytes().to_vec()),
        (raw::SET_VRING_CALL, 0x1ff_u64.to_ne_bytes().to_vec()),
        (raw::SET_LOG_BASE, vec![0; 16]),
        (raw::GET_INFLIGHT_FD, vec![0; 24]),
        (raw::SET_MEM_TABLE, vec![0; 8]),
        (raw::GET_FEATURES, vec![0; 4]),
        (0, vec![]),
        (45, vec![]),
        (u32::MAX, vec![]),
    ];
    for (count, (code, payload)) in wishes.into_iter().enumerate() {
        let frontend = guest.start(&socket, 2);
        raw::send(&frontend, code, &payload, &[]);
        host.wait_for_detach(1);
        assert!(frontend.get_features().is_err());
        assert_eq!(host.status(1).faults, 1 + count as u64, "after message {code}");
        assert_eq!(host.reactors.running(), 1, "the neighbour's ring");
    }
    // Rings outside of guest memory.
    let frontend = guest.negotiate(&host.add(3, "edge", 1));
    frontend.set_features(guest.features).unwrap();
    frontend.set_mem_table(&guest.regions()[..1]).unwrap();
    guest.set_ring_at(&frontend, 0, 64, guest.user_base() + Guest::FIRST_LEN - 64);
    frontend.set_vring_kick(0, &guest.kick).unwrap();
    raw::send(&frontend, raw::SET_VRING_ENABLE, &state(0, 1), &[]);
    host.wait_for_detach(3);
    assert!(host.logged("VHD edge", "is not in guest memory").contains("process"));
    neighbour.get_features().unwrap();
}

#[test]
fn garbage_of_every_kind() {
    let host = Host::new(2);
    let socket = host.add(1, "disk", 2);
    let guest = Guest::new();
    let rounds = std::env::var("SPANBLK_FUZZ_ROUNDS").map_or(150, |rounds| rounds.parse().unwrap());
    for seed in 0..rounds {
        let mut rng = Rng::new(seed);
        let stream = UnixStream::connect(&socket).unwrap();
        match rng.below(3) {
            0 => {
                let mut noise = vec![0; 200];
                rng.fill(&mut noise);
                let _ = (&stream).write_all(&noise);
            }
            _ => raw::random_session(&stream, &guest, &mut rng),
        }
        drop(stream);
        eventually("the rings are stopped", || host.status(1).frontend.is_none());
        assert_eq!(host.reactors.running(), 0, "seed {seed}");
        host.take_notes();
    }
    guest.start(&socket, 2).get_features().unwrap();
    assert!(host.reactors.most_running() > 0, "some sessions get as far as running rings");
}

#[test]
fn sockets_are_made_renamed_and_removed() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 1);
    let guest = Guest::new();
    let frontend = guest.start(&socket, 1);
    assert!(matches!(host.try_add(1, "again", 1), Err(ServerError::AlreadyServed(_))));
    let error = host.try_add(2, "disk", 1).unwrap_err();
    assert!(matches!(&error, ServerError::Socket(SocketError::Taken(_))), "{error}");
    let error = host.try_add(2, &"n".repeat(120), 1).unwrap_err();
    assert!(matches!(&error, ServerError::Socket(SocketError::TooLong { .. })), "{error}");

    let renamed = host.server.rename(host.id(1), "better").unwrap();
    assert!(!socket.exists() && renamed.exists());
    frontend.get_features().unwrap();
    assert_eq!(host.status(1).name, "better");
    let owner = SocketOwner { user: "nobody-at-all".into(), group: "0".into() };
    let settings = SocketSettings { mode: 0o600, owner: Some(owner) };
    assert!(matches!(
        host.server.set_socket(host.id(1), &settings),
        Err(ServerError::Socket(SocketError::NoSuchOwner { .. }))
    ));
    host.server.set_socket(host.id(1), &SocketSettings { owner: None, ..settings }).unwrap();

    // Taken out of service while a disk hangs, then while none does.
    host.reactors.hang(true);
    let removal = host.server.remove_vhd(host.id(1)).unwrap();
    assert!(!renamed.exists() && host.server.status(host.id(1)).is_none());
    assert!(!removal.wait(Duration::from_millis(100)));
    assert!(frontend.get_features().is_err(), "disconnected at once");
    host.reactors.hang(false);
    assert!(removal.wait(Duration::from_secs(20)));
    assert_eq!(host.events.take(), ["attached 1", "detached 1"]);
    assert!(matches!(host.server.remove_vhd(host.id(1)), Err(ServerError::NotServed(_))));
}

#[test]
fn the_server_ends_with_all_rings_drained() {
    let host = Host::new(2);
    let guest = Guest::new();
    let sockets: Vec<_> = (1..4).map(|id| host.add(id, &format!("disk{id}"), 2)).collect();
    let frontends: Vec<_> = sockets.iter().map(|socket| guest.start(socket, 2)).collect();
    let reactors = host.reactors.clone();
    assert_eq!(reactors.running(), 6);
    assert!(host.server.shut_down(Duration::from_secs(20)));
    assert_eq!(reactors.running(), 0);
    assert!(frontends.iter().all(|frontend| frontend.get_features().is_err()));
    assert!(sockets.iter().all(|socket| !socket.exists()));
}

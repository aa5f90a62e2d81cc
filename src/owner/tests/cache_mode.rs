//! The cache mode that a guest chose is kept.

use super::*;
use crate::base::limits::COMMANDS_WAITING_MAX;
use crate::owner::command::{Command, ErrorKind};
use crate::store::edit::EditFailed;

const ISOLATED: LayoutRequest = LayoutRequest::Isolated { disk: None };

fn set(vhd: VhdId, writeback: bool) -> Command {
    Command::SetCacheMode { vhd, writeback }
}

fn shown(world: &mut World) -> bool {
    match world.ask(Command::ShowVhd { vhd: "a".to_owned() }) {
        Ok(Reply::Vhd { vhd, .. }) => vhd.record.writeback,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_guest_has_its_answer_once_its_choice_is_durable() {
    let mut world = World::new(&[10], 1);
    let vhd = world.create(create("a", 4, ISOLATED)).record.id;
    assert!(shown(&mut world), "writeback until the guest chooses");
    let events = world.mail.events.len();
    let id = world.command(set(vhd, false));
    assert!(matches!(&world.mail.edits[..], [(_, rows)]
        if matches!(&rows[..], [StoreEdit::PutVhd(record)] if !record.writeback && record.name == "a")));
    assert!(!world.mail.replies.contains_key(&id) && shown(&mut world));
    world.commit_edits();
    assert!(matches!(world.mail.replies[&id], Ok(Reply::Vhd { outcome: Outcome::Changed, .. })));
    assert!(!shown(&mut world));
    // Again: nothing to write.
    let id = world.command(set(vhd, false));
    assert!(world.mail.edits.is_empty());
    assert!(matches!(world.mail.replies[&id], Ok(Reply::Vhd { outcome: Outcome::Unchanged, .. })));
    // It stays when the frontend leaves.
    world.owner.handle_attached(vhd, Some(7), &mut world.mail);
    world.owner.handle_attached(vhd, None, &mut world.mail);
    assert!(!shown(&mut world) && world.mail.edits.is_empty());
    world.run(set(vhd, true)).unwrap();
    assert!(shown(&mut world));
    assert_eq!(world.mail.events.len(), events + 2, "attached and detached only");
    assert!(world.mail.changed.is_empty(), "the socket is not concerned");
    assert_eq!(world.refuse(set(VhdId(99), false)).kind(), ErrorKind::NotFound);
    world.check();
}

#[test]
fn a_choice_that_cannot_be_stored_is_not_reported_as_kept() {
    let mut world = World::new(&[10], 1);
    let vhd = world.create(create("a", 4, ISOLATED)).record.id;
    let id = world.command(set(vhd, false));
    let (edit, _) = world.mail.edits.pop().unwrap();
    world.owner.handle_store(StoreReport::EditDone { edit, result: Err(EditFailed) }, &mut world.mail);
    assert!(world.mail.replies[&id].is_err() && shown(&mut world));
    world.run(set(vhd, false)).unwrap();
    assert!(!shown(&mut world));
}

#[test]
fn commands_that_wait_do_not_turn_a_choice_away() {
    let mut world = World::new(&[10], 1);
    let vhd = world.create(create("a", 4, ISOLATED)).record.id;
    let rename = |i: usize| Command::RenameVhd { vhd: format!("a{i}"), to: "x".to_owned() };
    world.command(Command::RenameVhd { vhd: "a".to_owned(), to: "b".to_owned() });
    for i in 0..COMMANDS_WAITING_MAX {
        world.command(rename(i));
    }
    let turned_away = world.command(rename(0));
    assert!(matches!(world.mail.replies[&turned_away], Err(CommandError::Busy)));
    let id = world.command(set(vhd, false));
    assert!(!world.mail.replies.contains_key(&id));
    world.commit_edits();
    world.commit_edits();
    assert!(world.mail.replies[&id].is_ok());
}

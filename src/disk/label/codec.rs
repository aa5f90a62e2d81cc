//! Labels as bytes. The specification is the table in the parent module; `tests` checks the offsets.

use uuid::Uuid;

use super::{
    Accept, CopyId, FAILURE_DOMAIN_LEN_MAX, INCOMPAT_BRANCH, INCOMPAT_KNOWN, LEN, Label, LabelError, VERSION,
    VERSION_OLDEST,
};
use crate::base::ids::{DiskId, check_name};
use crate::base::limits::{DISKS_MAX, NAME_LEN_MAX, STORE_MEMBERS_MAX};
use crate::base::units::Geometry;
use crate::disk::geometry::{DiskLayout, METADATA_OFFSET, label_b_offset};
use crate::disk::membership::{Branch, Member, Membership, RosterEntry, Settled};

pub(super) const MAGIC: [u8; 8] = *b"spanblk\0";
const CHECKSUM: usize = 8;
const VERSION_AT: usize = 12;
const INCOMPAT: usize = 24;
const NAME: usize = 136;
const DOMAIN: usize = 200;
const MEMBERS: usize = 344;
const PREVIOUS: usize = 404;
const PREVIOUS_EPOCH: usize = 464;
const BRANCH: usize = 472;
const BRANCH_LEN: usize = 24;
const MEMBER_LEN: usize = 20;
const ROSTER: usize = 512;
const ROSTER_LEN: usize = LEN - ROSTER;
const ROSTER_FIXED: usize = 19;
const FLAG_DOMAIN_NAMED: u8 = 1;
const FLAG_NAME_CUT: u8 = 1;

const _: () = assert!(NAME + NAME_LEN_MAX == DOMAIN && DOMAIN + FAILURE_DOMAIN_LEN_MAX == 328);
const _: () = assert!(MEMBERS + STORE_MEMBERS_MAX * MEMBER_LEN == PREVIOUS);
const _: () = assert!(PREVIOUS + STORE_MEMBERS_MAX * MEMBER_LEN == PREVIOUS_EPOCH);
const _: () = assert!(PREVIOUS_EPOCH + 8 == BRANCH && BRANCH + BRANCH_LEN <= ROSTER);
const _: () = assert!(ROSTER_LEN / DISKS_MAX - ROSTER_FIXED >= 37);

/// Writes a label as the bytes of one copy.
///
/// # Panics
/// If the label breaks a rule that [`decode`] checks (a bug).
#[must_use]
pub fn encode(label: &Label, copy: CopyId) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &MAGIC);
    put(VERSION_AT, &VERSION.to_le_bytes());
    put(16, &label.compat.to_le_bytes());
    put(20, &label.ro_compat.to_le_bytes());
    let branch = label.membership.branch;
    // Pools that never needed another branch can be read by programs that know none.
    put(INCOMPAT, &if branch == Branch::FIRST { 0 } else { INCOMPAT_BRANCH }.to_le_bytes());
    put(
        28,
        &[u8::from(copy == CopyId::B), accept_code(label.accept), u8::from(label.failure_domain_named), label.id.0],
    );
    put(32, &label.sequence.to_le_bytes());
    put(40, label.pool.as_bytes());
    put(56, label.uuid.as_bytes());
    put(72, &label.extent_size.to_le_bytes());
    put(80, &label.disk_size.to_le_bytes());
    let metadata_offset = if label.layout.metadata_len > 0 { METADATA_OFFSET } else { 0 };
    put(88, &metadata_offset.to_le_bytes());
    put(96, &label.layout.metadata_len.to_le_bytes());
    put(104, &label.layout.data_offset.to_le_bytes());
    put(112, &label.layout.slots.to_le_bytes());
    put(116, &label.block_size.to_le_bytes());
    put(120, &label.created.to_le_bytes());
    put(128, &[length(label.name.len()), length(label.failure_domain.len())]);
    put(NAME, label.name.as_bytes());
    put(DOMAIN, label.failure_domain.as_bytes());
    let membership = &label.membership;
    put(328, &membership.epoch.to_le_bytes());
    let (previous_epoch, previous) = match &membership.proposed_after {
        Some(settled) => (settled.epoch, &settled.members[..]),
        None => (0, &[][..]),
    };
    put(336, &[length(membership.members.len()), length(previous.len()), length(membership.roster.len())]);
    put(PREVIOUS_EPOCH, &previous_epoch.to_le_bytes());
    for (i, word) in [branch.id, branch.parent, branch.since].into_iter().enumerate() {
        put(BRANCH + i * 8, &word.to_le_bytes());
    }
    for (list, start) in [(&membership.members[..], MEMBERS), (previous, PREVIOUS)] {
        for (i, member) in list.iter().enumerate() {
            put(start + i * MEMBER_LEN, &[member.id.0]);
            put(start + i * MEMBER_LEN + 4, member.uuid.as_bytes());
        }
    }
    let roster = encode_roster(&membership.roster);
    put(340, &u16::try_from(roster.len()).expect("a roster of at most 3584 bytes").to_le_bytes());
    put(ROSTER, &roster);
    let checksum = crc32c::crc32c(&bytes);
    bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum.to_le_bytes());
    if let Err(error) = decode(&bytes) {
        panic!("wrote a label that cannot be read: {error}");
    }
    bytes
}

fn length(len: usize) -> u8 {
    u8::try_from(len).expect("lengths and counts of a label are below 256")
}

fn accept_code(accept: Accept) -> u8 {
    match accept {
        Accept::Any => 0,
        Accept::Isolated => 1,
        Accept::Spanned => 2,
        Accept::None => 3,
    }
}

/// Names are cut to the largest length at which all fit.
fn encode_roster(roster: &[RosterEntry]) -> Vec<u8> {
    let total = |cap: usize| roster.iter().map(|entry| ROSTER_FIXED + entry.name.len().min(cap)).sum::<usize>();
    let cap = (0..=NAME_LEN_MAX).rev().find(|&cap| total(cap) <= ROSTER_LEN).expect("64 disks without names fit");
    let mut bytes = Vec::with_capacity(ROSTER_LEN);
    for entry in roster {
        let name = &entry.name[..entry.name.len().min(cap)];
        let is_cut = entry.name_is_cut || name.len() < entry.name.len();
        bytes.extend_from_slice(entry.uuid.as_bytes());
        bytes.extend_from_slice(&[entry.id.0, if is_cut { FLAG_NAME_CUT } else { 0 }, length(name.len())]);
        bytes.extend_from_slice(name.as_bytes());
    }
    bytes
}

/// Reads bytes that may be anything, with the number of the copy they say they are.
///
/// # Errors
/// See [`LabelError`]; the checks come in the order of its variants, so a damaged label is never taken for a newer one.
pub fn decode(bytes: &[u8; LEN]) -> Result<(Label, CopyId), LabelError> {
    if bytes[..8] != MAGIC {
        return Err(LabelError::Absent);
    }
    let checksum = u32_at(bytes, CHECKSUM);
    let mut zeroed = *bytes;
    zeroed[CHECKSUM..CHECKSUM + 4].fill(0);
    if crc32c::crc32c(&zeroed) != checksum {
        return Err(LabelError::Corrupt);
    }
    match u32_at(bytes, VERSION_AT) {
        found if found > VERSION => return Err(LabelError::NewerVersion { found }),
        found if found < VERSION_OLDEST => return Err(LabelError::OlderVersion { found }),
        _ => {}
    }
    let unknown = u32_at(bytes, INCOMPAT) & !INCOMPAT_KNOWN;
    if unknown != 0 {
        return Err(LabelError::UnknownFeatures { flags: unknown });
    }
    // Nothing could follow the last one. No label ever gets there.
    if u64_at(bytes, 32) == u64::MAX {
        return Err(invalid("sequence number"));
    }
    let copy = match bytes[28] {
        0 => CopyId::A,
        1 => CopyId::B,
        _ => return Err(invalid("copy number")),
    };
    let label = Label {
        compat: u32_at(bytes, 16),
        ro_compat: u32_at(bytes, 20),
        sequence: u64_at(bytes, 32),
        pool: uuid_at(bytes, 40),
        uuid: uuid_at(bytes, 56),
        id: disk_id(bytes[31])?,
        name: text(bytes, NAME, bytes[128], NAME_LEN_MAX).ok_or(invalid("name"))?,
        extent_size: u64_at(bytes, 72),
        block_size: u32_at(bytes, 116),
        disk_size: u64_at(bytes, 80),
        layout: DiskLayout {
            metadata_len: u64_at(bytes, 96),
            data_offset: u64_at(bytes, 104),
            slots: u32_at(bytes, 112),
        },
        accept: accept_of(bytes[29])?,
        failure_domain: text(bytes, DOMAIN, bytes[129], FAILURE_DOMAIN_LEN_MAX).ok_or(invalid("failure domain"))?,
        failure_domain_named: bytes[30] & FLAG_DOMAIN_NAMED != 0,
        created: u64_at(bytes, 120),
        membership: membership(bytes)?,
    };
    check_reserved(bytes)?;
    check_label(&label, u64_at(bytes, 88))?;
    Ok((label, copy))
}

fn invalid(field: &'static str) -> LabelError {
    LabelError::Invalid { field }
}

fn check_reserved(bytes: &[u8; LEN]) -> Result<(), LabelError> {
    let zero = |range: std::ops::Range<usize>| bytes[range].iter().all(|&b| b == 0);
    let flags = bytes[30] & !FLAG_DOMAIN_NAMED == 0;
    if flags && zero(130..136) && zero(339..340) && zero(342..344) && zero(BRANCH + BRANCH_LEN..ROSTER) {
        Ok(())
    } else {
        Err(invalid("reserved bytes are not zero"))
    }
}

/// The rules between fields.
fn check_label(label: &Label, metadata_offset: u64) -> Result<(), LabelError> {
    let rule = |holds: bool, field| if holds { Ok(()) } else { Err(invalid(field)) };
    rule(check_name(&label.name).is_ok(), "name")?;
    rule(!label.pool.is_nil() && !label.uuid.is_nil(), "UUID")?;
    rule(matches!(label.block_size, 512 | 4096), "logical block size")?;
    rule(Geometry::new(label.extent_size).is_some(), "extent size")?;
    let layout = &label.layout;
    rule(metadata_offset == if layout.metadata_len > 0 { METADATA_OFFSET } else { 0 }, "metadata offset")?;
    let metadata_end = METADATA_OFFSET.checked_add(layout.metadata_len).ok_or(invalid("metadata length"))?;
    rule(label.disk_size >= metadata_end.saturating_add(LEN as u64), "disk size")?;
    rule(layout.metadata_len.is_multiple_of(LEN as u64), "metadata length")?;
    rule(layout.metadata_len > 0 || layout.slots > 0, "neither metadata nor data")?;
    let aligned = layout.data_offset.is_multiple_of(label.extent_size);
    rule(aligned && layout.data_offset >= metadata_end, "data offset")?;
    let data_len = u64::from(layout.slots).checked_mul(label.extent_size);
    let end = data_len.and_then(|len| len.checked_add(layout.data_offset)).ok_or(invalid("number of slots"))?;
    rule(layout.slots == 0 || end <= label_b_offset(label.disk_size), "number of slots")?;
    let here = |entry: &RosterEntry| entry.id == label.id && entry.uuid == label.uuid;
    rule(label.membership.roster.iter().any(here), "roster without this disk")
}

fn membership(bytes: &[u8; LEN]) -> Result<Membership, LabelError> {
    let roster_len = usize::from(u16::from_le_bytes([bytes[340], bytes[341]]));
    let roster = bytes[ROSTER..].get(..roster_len).ok_or(invalid("roster length"))?;
    if bytes[ROSTER + roster_len..].iter().any(|&b| b != 0) {
        return Err(invalid("reserved bytes are not zero"));
    }
    let previous = Settled { epoch: u64_at(bytes, PREVIOUS_EPOCH), members: members(bytes, PREVIOUS, bytes[337])? };
    let epoch = u64_at(bytes, 328);
    let proposed_after = match (previous.epoch, previous.members.is_empty()) {
        (0, true) => None,
        (1.., false) if previous.epoch < epoch => Some(previous),
        _ => return Err(invalid("previous store members")),
    };
    let now = members(bytes, MEMBERS, bytes[336])?;
    if epoch == 0 || now.is_empty() {
        return Err(invalid("store members"));
    }
    let branch = branch(bytes, epoch, proposed_after.as_ref())?;
    let roster = decode_roster(roster, usize::from(bytes[338]))?;
    Ok(Membership { epoch, members: now, proposed_after, branch, roster })
}

/// Epochs of a branch come after those that it shares with its parent; the first proposal follows the last of these.
fn branch(bytes: &[u8; LEN], epoch: u64, follows: Option<&Settled>) -> Result<Branch, LabelError> {
    let word = |i: usize| u64_at(bytes, BRANCH + i * 8);
    let branch = Branch { id: word(0), parent: word(1), since: word(2) };
    let holds = if u32_at(bytes, INCOMPAT) & INCOMPAT_BRANCH == 0 {
        branch == Branch::FIRST
    } else {
        let is_later = follows.is_none_or(|settled| settled.epoch >= branch.since);
        branch.id != 0 && branch.id != branch.parent && (1..epoch).contains(&branch.since) && is_later
    };
    if holds { Ok(branch) } else { Err(invalid("branch")) }
}

fn members(bytes: &[u8; LEN], start: usize, count: u8) -> Result<Vec<Member>, LabelError> {
    let count = usize::from(count);
    if count > STORE_MEMBERS_MAX {
        return Err(invalid("number of store members"));
    }
    let mut list: Vec<Member> = Vec::with_capacity(count);
    for i in 0..STORE_MEMBERS_MAX {
        let field = &bytes[start + i * MEMBER_LEN..start + (i + 1) * MEMBER_LEN];
        if i >= count {
            if field.iter().any(|&b| b != 0) {
                return Err(invalid("reserved bytes are not zero"));
            }
            continue;
        }
        let member = Member { id: disk_id(field[0])?, uuid: uuid_at(bytes, start + i * MEMBER_LEN + 4) };
        if field[1..4] != [0; 3] || list.iter().any(|m| m.id == member.id || m.uuid == member.uuid) {
            return Err(invalid("store members"));
        }
        list.push(member);
    }
    Ok(list)
}

fn decode_roster(mut rest: &[u8], count: usize) -> Result<Vec<RosterEntry>, LabelError> {
    let mut roster: Vec<RosterEntry> = Vec::with_capacity(count);
    while let Some((fixed, after)) = rest.split_at_checked(ROSTER_FIXED) {
        let name_len = usize::from(fixed[18]);
        let (name, later) = after.split_at_checked(name_len).ok_or(invalid("roster"))?;
        let name = std::str::from_utf8(name).map_err(|_| invalid("roster"))?;
        let uuid = Uuid::from_slice(&fixed[..16]).expect("16 bytes");
        let entry = RosterEntry {
            id: disk_id(fixed[16])?,
            uuid,
            name: name.to_owned(),
            name_is_cut: fixed[17] == FLAG_NAME_CUT,
        };
        let double = roster.iter().any(|other| other.id == entry.id || other.uuid == uuid);
        if fixed[17] & !FLAG_NAME_CUT != 0 || double || check_name(name).is_err() {
            return Err(invalid("roster"));
        }
        roster.push(entry);
        rest = later;
    }
    if rest.is_empty() && roster.len() == count { Ok(roster) } else { Err(invalid("roster")) }
}

fn accept_of(code: u8) -> Result<Accept, LabelError> {
    match code {
        0 => Ok(Accept::Any),
        1 => Ok(Accept::Isolated),
        2 => Ok(Accept::Spanned),
        3 => Ok(Accept::None),
        _ => Err(invalid("accept role")),
    }
}

fn disk_id(code: u8) -> Result<DiskId, LabelError> {
    if usize::from(code) < DISKS_MAX { Ok(DiskId(code)) } else { Err(invalid("disk id")) }
}

/// Text of `len` bytes in a zero-padded field.
fn text(bytes: &[u8; LEN], start: usize, len: u8, field_len: usize) -> Option<String> {
    let (used, padding) = bytes[start..start + field_len].split_at_checked(usize::from(len))?;
    let clean = padding.iter().all(|&b| b == 0);
    std::str::from_utf8(used).ok().filter(|_| clean).map(str::to_owned)
}

fn u32_at(bytes: &[u8; LEN], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8; LEN], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn uuid_at(bytes: &[u8; LEN], at: usize) -> Uuid {
    Uuid::from_slice(&bytes[at..at + 16]).expect("16 bytes")
}

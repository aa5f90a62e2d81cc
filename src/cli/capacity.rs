//! Quotas and reservations, in words.

use super::args::SizeOrNone;
use crate::control::wire::CapacityInfo;
use crate::control::wire::size::human_size;

/// What a request says that sets both.
pub fn given(limit: Option<SizeOrNone>) -> Option<Option<u64>> {
    limit.map(|SizeOrNone(size)| size)
}

/// The quota, and what is used of it.
pub fn quota_text(capacity: &CapacityInfo) -> String {
    let used = human_size(capacity.charged_bytes);
    match capacity.quota_bytes {
        None => "none".to_owned(),
        Some(quota) if capacity.charged_bytes > quota => format!("{} (EXCEEDED: {used} used)", human_size(quota)),
        Some(quota) => format!("{} ({used} used)", human_size(quota)),
    }
}

/// The reservation, and what becomes of it.
pub fn reservation_text(capacity: &CapacityInfo) -> String {
    let Some(reservation) = capacity.reservation_bytes else { return "none".to_owned() };
    let held = human_size(capacity.held_bytes);
    let short = match capacity.short_bytes {
        0 => String::new(),
        short => format!("; SHORT BY {}: add or replace disks, or move VHDs away", human_size(short)),
    };
    format!("{} ({held} kept free{short})", human_size(reservation))
}

/// For a table: a size, or nothing.
pub fn brief(limit: Option<u64>) -> String {
    limit.map_or_else(|| "-".to_owned(), human_size)
}

/// What there is to say after one was set: it is not what was asked for to the byte, or less than what is used.
pub fn remarks(quota: Option<SizeOrNone>, reservation: Option<SizeOrNone>, now: &CapacityInfo) -> String {
    let mut text = String::new();
    for (what, asked, is) in [("quota", quota, now.quota_bytes), ("reservation", reservation, now.reservation_bytes)] {
        if let (Some(SizeOrNone(Some(asked))), Some(is)) = (asked, is)
            && asked != is
        {
            text.push_str(&format!("{what}: {is} bytes (whole extents)\n"));
        }
    }
    if quota.is_some() && now.quota_bytes.is_some_and(|quota| now.charged_bytes > quota) {
        let used = human_size(now.charged_bytes);
        text.push_str(&format!(
            "{used} are used already, which is more than the quota: they stay, and nothing is added\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said() {
        let fine = CapacityInfo {
            quota_bytes: Some(8 << 20),
            reservation_bytes: Some(4 << 20),
            charged_bytes: 1 << 20,
            held_bytes: 3 << 20,
            short_bytes: 0,
        };
        assert_eq!(
            (quota_text(&fine), reservation_text(&fine)),
            ("8MiB (1MiB used)".to_owned(), "4MiB (3MiB kept free)".to_owned())
        );
        assert_eq!(remarks(Some(SizeOrNone(Some(8 << 20))), None, &fine), "");
        assert_eq!(remarks(Some(SizeOrNone(Some(7_500_000))), None, &fine), "quota: 8388608 bytes (whole extents)\n");
        let bad = CapacityInfo { charged_bytes: 9 << 20, short_bytes: 1 << 20, ..fine };
        assert!(quota_text(&bad).contains("EXCEEDED") && reservation_text(&bad).contains("SHORT BY 1MiB"));
        assert!(remarks(Some(SizeOrNone(Some(8 << 20))), None, &bad).contains("9MiB are used already"));
        let none = CapacityInfo::default();
        assert_eq!(
            (quota_text(&none), reservation_text(&none), brief(None)),
            ("none".into(), "none".into(), "-".into())
        );
    }
}

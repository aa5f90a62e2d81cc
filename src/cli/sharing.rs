//! What VHDs get of host disks that several of them want, for people.

use crate::control::wire::{Sharing, SharingInEffect, SharingPriority, VhdInfo};

/// What a VHD or VM says itself.
pub fn sharing_text(sharing: Sharing) -> String {
    let weight = sharing.weight.map(|weight| format!("weight {weight}"));
    let priority = sharing.priority.map(|priority| format!("priority {}", word(priority)));
    let target = sharing.latency_target_us.map(|micros| format!("latency target {}", time_text(micros)));
    let texts: Vec<String> = [weight, priority, target].into_iter().flatten().collect();
    if texts.is_empty() { "nothing said".to_owned() } else { texts.join(", ") }
}

/// What holds for a VHD, and whether its VM says it.
pub fn in_effect_text(vhd: &VhdInfo) -> String {
    let SharingInEffect { weight, priority, latency_target_us } = vhd.sharing_in_effect;
    let all = Sharing { weight: Some(weight), priority: Some(priority), latency_target_us };
    let own = &vhd.sharing;
    let of_nobody = SharingInEffect::default();
    let is_vms = own.latency_target_us.is_none() && latency_target_us.is_some()
        || own.weight.is_none() && weight != of_nobody.weight
        || own.priority.is_none() && priority != of_nobody.priority;
    sharing_text(all) + if is_vms { " (partly from its VM)" } else { "" }
}

fn word(priority: SharingPriority) -> &'static str {
    match priority {
        SharingPriority::High => "high",
        SharingPriority::Normal => "normal",
        SharingPriority::Low => "low",
    }
}

fn time_text(micros: u64) -> String {
    if micros.is_multiple_of(1000) { format!("{} ms", micros / 1000) } else { format!("{micros} us") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_told() {
        assert_eq!(sharing_text(Sharing::default()), "nothing said");
        let all = Sharing { weight: Some(7), priority: Some(SharingPriority::High), latency_target_us: Some(1500) };
        assert_eq!(sharing_text(all), "weight 7, priority high, latency target 1500 us");
        assert_eq!(time_text(2000), "2 ms");
    }
}

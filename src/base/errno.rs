//! Errors of the system on their way between processes: their number, or their text if they have none.
//!
//! For `#[serde(with = "crate::base::errno")]`.

use std::io;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
enum Sent {
    Number(i32),
    Text(String),
}

/// Writes an error.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(error: &io::Error, serializer: S) -> Result<S::Ok, S::Error> {
    let sent = error.raw_os_error().map_or_else(|| Sent::Text(error.to_string()), Sent::Number);
    sent.serialize(serializer)
}

/// Reads an error.
///
/// # Errors
/// The deserializer's.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<io::Error, D::Error> {
    Ok(match Sent::deserialize(deserializer)? {
        Sent::Number(number) => io::Error::from_raw_os_error(number),
        Sent::Text(text) => io::Error::other(text),
    })
}

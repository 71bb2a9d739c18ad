//! Parsers of argument values. Each error says what was found and what is expected.

use std::num::NonZeroU32;
use std::time::Duration;

use unibus_proto::id::GroupId;
use unibus_proto::limits::{HEADER_NAME_BYTES_MAX, HEADER_VALUE_BYTES_MAX};

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the lowest sequence that can be read.
    Earliest,
    /// At what is stored from now on.
    Latest,
    /// At this sequence.
    Sequence(u64),
}

/// `45s`, `200ms`, `10m`, `2h`, `7d`, `1m30s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("found {text:?}, expected a number with a unit, such as 200ms, 45s, 10m, 2h, 7d, 1m30s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, tail) = split_after(rest, |c| c.is_ascii_digit());
        let (unit, tail) = split_after(tail, |c| c.is_ascii_alphabetic());
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(invalid()),
        };
        let part = number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(invalid)?;
        total = total.checked_add(part).ok_or_else(invalid)?;
        rest = tail;
    }
    if text.is_empty() { Err(invalid()) } else { Ok(total) }
}

/// A duration above zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("found 0, expected a duration above zero".into()),
        duration => Ok(duration),
    }
}

/// `meta`, `s3` or `3`; `s0` is not another name of meta.
pub fn group(text: &str) -> Result<GroupId, String> {
    let number = text.strip_prefix('s').unwrap_or(text);
    match (text, number.parse()) {
        ("meta", _) => Ok(GroupId::META),
        (_, Ok(shard)) if shard > 0 => Ok(GroupId(shard)),
        _ => Err(format!("found {text:?}, expected meta, s1, s2, ...")),
    }
}

/// `1500` or `1500/s`.
pub fn rate(text: &str) -> Result<NonZeroU32, String> {
    text.strip_suffix("/s")
        .unwrap_or(text)
        .parse()
        .map_err(|_| format!("found {text:?}, expected messages per second above zero, such as 1500 or 1500/s"))
}

/// `90m`, `7d`, `none`: milliseconds, 0 for no bound.
pub fn retain_age(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        _ => Ok(positive_duration(text)?.as_millis() as u64),
    }
}

/// `64MiB`, `1GiB`, `none`: bytes, 0 for no bound.
pub fn retain_bytes(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        _ => match size(text)? {
            0 => Err("found 0, expected bytes above zero, such as 64MiB or 1GiB, or none".into()),
            bytes => Ok(bytes as u64),
        },
    }
}

/// `100000`, `none`: entries, 0 for no bound.
pub fn retain_messages(text: &str) -> Result<u64, String> {
    let invalid = || format!("found {text:?}, expected a number above zero, such as 100000, or none");
    match text {
        "none" => Ok(0),
        _ => text.parse().ok().filter(|count| *count > 0).ok_or_else(invalid),
    }
}

/// `1024`, `64KiB`, `1MiB`, `2GiB`.
pub fn size(text: &str) -> Result<usize, String> {
    let (number, unit) = split_after(text, |c| c.is_ascii_digit());
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => 64,
    };
    number
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(1usize.checked_shl(shift)?))
        .ok_or_else(|| format!("found {text:?}, expected bytes, such as 1024, 64KiB or 1MiB"))
}

/// `earliest`, `latest` or a sequence.
pub fn start_at(text: &str) -> Result<StartAt, String> {
    match text {
        "earliest" => Ok(StartAt::Earliest),
        "latest" => Ok(StartAt::Latest),
        _ => text
            .parse()
            .map(StartAt::Sequence)
            .map_err(|_| format!("found {text:?}, expected earliest, latest or a sequence such as 4711")),
    }
}

/// `name:value`; blanks around the value are dropped.
pub fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once(':').ok_or_else(|| format!("found {text:?}, expected name:value, such as trace-id:7f3a"))?;
    let (name, value) = (name.trim(), value.trim());
    if name.is_empty() || name.len() > HEADER_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!(
            "header name has {} bytes, expected 1 to {HEADER_NAME_BYTES_MAX} without control characters",
            name.len()
        ));
    }
    if value.len() > HEADER_VALUE_BYTES_MAX {
        return Err(format!(
            "value of header {name:?} has {} bytes, expected at most {HEADER_VALUE_BYTES_MAX}",
            value.len()
        ));
    }
    Ok((name.into(), value.into()))
}

/// The name of a profile: it becomes a file name.
pub fn profile_name(text: &str) -> Result<String, String> {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let fits = !text.is_empty() && text.len() <= 64 && !text.starts_with('.') && text.chars().all(word);
    if fits {
        Ok(text.into())
    } else {
        Err(format!("found {text:?}, expected 1 to 64 of A-Z a-z 0-9 . _ -, not starting with a dot"))
    }
}

fn split_after(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in
            [("200ms", 200), ("45s", 45_000), ("10m", 600_000), ("2h", 7_200_000), ("1m30s", 90_000), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in
            ["", "10", "s", "-1s", "1.5s", "1 s", "10x", "1m30", "99999999999999999999s", "18446744073709551615d"]
        {
            let error = duration(text).unwrap_err();
            assert!(error.contains("such as 200ms"), "{text}: {error}");
        }
        assert!(positive_duration("0ms").is_err());
    }

    #[test]
    fn rates_and_sizes() {
        assert_eq!(rate("1500").map(NonZeroU32::get), Ok(1500));
        assert_eq!(rate("1500/s").map(NonZeroU32::get), Ok(1500));
        assert!(rate("0").is_err() && rate("-3").is_err() && rate("1/m").is_err());
        assert_eq!(size("1024"), Ok(1024));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("1MiB"), Ok(1 << 20));
        assert!(size("1kb").is_err() && size("").is_err() && size("99999999999999999999MiB").is_err());
    }

    #[test]
    fn groups() {
        assert_eq!(group("meta"), Ok(GroupId::META));
        assert_eq!((group("s3"), group("3")), (Ok(GroupId(3)), Ok(GroupId(3))));
        for text in ["s0", "0", "s", "", "-1", "META", "ss1"] {
            assert!(group(text).unwrap_err().contains("expected meta, s1, s2"), "{text}");
        }
    }

    #[test]
    fn retention() {
        assert_eq!((retain_age("none"), retain_age("7d")), (Ok(0), Ok(604_800_000)));
        assert_eq!((retain_bytes("none"), retain_bytes("1GiB")), (Ok(0), Ok(1 << 30)));
        assert_eq!((retain_messages("none"), retain_messages("100000")), (Ok(0), Ok(100_000)));
        assert!(retain_age("0s").is_err() && retain_bytes("0").is_err() && retain_messages("0").is_err());
        assert!(retain_messages("-1").unwrap_err().contains("above zero"));
    }

    #[test]
    fn starts() {
        assert_eq!(start_at("earliest"), Ok(StartAt::Earliest));
        assert_eq!(start_at("latest"), Ok(StartAt::Latest));
        assert_eq!(start_at("0"), Ok(StartAt::Sequence(0)));
        assert!(start_at("first").unwrap_err().contains("expected earliest, latest or a sequence"));
    }

    #[test]
    fn headers() {
        assert_eq!(header("a: b:c "), Ok(("a".into(), "b:c".into())));
        assert_eq!(header("a:"), Ok(("a".into(), String::new())));
        assert!(header("novalue").is_err());
        assert!(header(":v").is_err());
        assert!(header(&format!("{}:v", "n".repeat(129))).unwrap_err().contains("129 bytes"));
        assert!(header(&format!("n:{}", "v".repeat(4097))).unwrap_err().contains("4097 bytes"));
    }

    #[test]
    fn profile_names_stay_in_their_directory() {
        assert!(profile_name("bob-2.work").is_ok());
        for name in ["", "..", "a/b", ".hidden", "a b"] {
            assert!(profile_name(name).is_err(), "{name}");
        }
    }
}

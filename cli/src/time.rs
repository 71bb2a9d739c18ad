//! Wall time as text: RFC 3339 in UTC with milliseconds, and durations as people write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MS_PER_DAY: u64 = 86_400_000;

/// Now, in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A time as `2026-11-20T10:00:00.123Z`.
pub fn rfc3339(ms: u64) -> String {
    let (year, month, day) = civil_from_days(ms / MS_PER_DAY);
    let (second, ms) = (ms % MS_PER_DAY / 1000, ms % 1000);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Days since 1970-01-01 to year, month, day: Howard Hinnant's `civil_from_days`, with March as the
/// first month, so that the leap day is the last of its year.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// A duration for people: `850us`, `12.3ms`, `4.56s`, `3m05s`, `2h07m`, `4d03h`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match () {
        () if duration < Duration::from_millis(1) => format!("{}us", duration.as_micros()),
        () if duration < Duration::from_secs(1) => format!("{:.1}ms", duration.as_secs_f64() * 1e3),
        () if seconds < 60 => format!("{:.2}s", duration.as_secs_f64()),
        () if seconds < 3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        () if seconds < 86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        () => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_calendar_corners() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_709_210_096_789), "2024-02-29T12:34:56.789Z");
        assert_eq!(rfc3339(1_735_689_599_999), "2024-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn days_follow_each_other_for_four_centuries() {
        let mut before = civil_from_days(0);
        for days in 1..146_097 {
            let (year, month, day) = civil_from_days(days);
            let next_day = (year, month, day) == (before.0, before.1, before.2 + 1);
            let next_month = day == 1 && before.2 >= 28 && (year, month) == (before.0, before.1 + 1);
            let next_year = (month, day) == (1, 1) && before == (year - 1, 12, 31);
            assert!(next_day || next_month || next_year, "{before:?} then {year}-{month}-{day}");
            before = (year, month, day);
        }
    }

    #[test]
    fn durations_read_well() {
        let shown = [850, 12_345, 4_560_000, 185_000_000, 7_620_000_000, 356_400_000_000]
            .map(|micros| human(Duration::from_micros(micros)));
        assert_eq!(shown, ["850us", "12.3ms", "4.56s", "3m05s", "2h07m", "4d03h"]);
    }
}

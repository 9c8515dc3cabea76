//! Decides how single values look to people. Never rounds money, never prints a control character.

/// Milliseconds as people say them: `850ms`, `12s`, `1m 30s`, `2h 5m`, `3d 4h`. Rounded down, to two units at most.
pub fn span(ms: u64) -> String {
    const SECOND: u64 = 1_000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let (unit, name, below, below_name) = match ms {
        0..SECOND => return format!("{ms}ms"),
        SECOND..MINUTE => return format!("{}s", ms / SECOND),
        MINUTE..HOUR => (MINUTE, "m", SECOND, "s"),
        HOUR..DAY => (HOUR, "h", MINUTE, "m"),
        DAY.. => (DAY, "d", HOUR, "h"),
    };
    match ms % unit / below {
        0 => format!("{}{name}", ms / unit),
        rest => format!("{}{name} {rest}{below_name}", ms / unit),
    }
}

/// Microseconds as `4.2ms`. Rounded down.
pub fn tenths_of_ms(us: u64) -> String {
    format!("{}.{}ms", us / 1_000, us % 1_000 / 100)
}

/// `3.3 MiB`. Rounded down, to a tenth.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut below = 1_u64;
    while unit + 1 < UNITS.len() && count / below >= 1_024 {
        below *= 1_024;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!(
            "{}.{} {}",
            count / below,
            count % below * 10 / below,
            UNITS[unit]
        ),
    }
}

/// Text of others (a holder's name, a provider's code) as it may stand on a terminal: control characters, which could
/// move the cursor and forge a line, are spelled out.
pub fn clean(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let spelled = c.is_control() || is_reordering(c);
            let (plain, escaped) = if spelled {
                (None, Some(c.escape_unicode()))
            } else {
                (Some(c), None)
            };
            plain.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

/// Characters that make the text around them run the other way: a reader would see another id than a program.
fn is_reordering(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_as_people_say_them() {
        for (ms, said) in [
            (0, "0ms"),
            (999, "999ms"),
            (12_999, "12s"),
            (60_000, "1m"),
            (90_000, "1m 30s"),
            (3_600_000, "1h"),
            (7_500_000, "2h 5m"),
            (273_600_000, "3d 4h"),
        ] {
            assert_eq!(span(ms), said);
        }
    }

    #[test]
    fn bytes_are_said_in_a_unit_that_people_compare() {
        let said = [0, 1_023, 1_024, 3_500_000, 7 << 30, u64::MAX].map(bytes);
        assert_eq!(
            said,
            [
                "0 B",
                "1023 B",
                "1.0 KiB",
                "3.3 MiB",
                "7.0 GiB",
                "16777215.9 TiB"
            ]
        );
    }

    #[test]
    fn a_name_cannot_forge_a_line_or_move_the_cursor() {
        assert_eq!(
            clean("ana\n\u{1b}[2J\u{202e}ben ü"),
            "ana\\u{a}\\u{1b}[2J\\u{202e}ben ü"
        );
    }
}

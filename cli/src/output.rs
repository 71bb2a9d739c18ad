//! Where words go: data on standard output, all talk on standard error; a table only on a terminal.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Map, Value};

use crate::exit::{Failure, Result};

/// The output of one command.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Machine-readable output was asked for.
    pub json: bool,
    /// Standard output is a terminal.
    pub out_tty: bool,
    /// Standard error is a terminal.
    pub err_tty: bool,
}

impl Output {
    /// The output of this process.
    pub fn new(json: bool) -> Self {
        Self { json, out_tty: io::stdout().is_terminal(), err_tty: io::stderr().is_terminal() }
    }

    /// A line of data.
    pub fn line(&self, text: &str) -> Result<()> {
        Ok(write_line(&mut io::stdout().lock(), text)?)
    }

    /// A JSON object of `unibus.cli.v1.<thing>` as one line.
    pub fn object(&self, thing: &str, value: Value) -> Result<()> {
        self.line(&with_schema(thing, value).to_string())
    }

    /// The object under `--json`, the line otherwise.
    pub fn either(&self, thing: &str, value: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Result<()> {
        if self.json { self.object(thing, value()) } else { self.line(&text()) }
    }

    /// A table on a terminal; elsewhere one record per line, its fields separated by tabs.
    pub fn table(&self, head: &[&str], rows: &[Vec<String>]) -> Result<()> {
        let text = if self.out_tty { render(head, rows) } else { records(rows) };
        if text.is_empty() { Ok(()) } else { self.line(&text) }
    }

    /// Talk. Losing it (a closed standard error) is no reason to fail.
    pub fn talk(&self, text: impl AsRef<str>) {
        let _ = write_line(&mut io::stderr().lock(), text.as_ref());
    }

    /// Talk for people only: nothing under `--json`.
    pub fn hint(&self, text: impl AsRef<str>) {
        if !self.json {
            self.talk(text);
        }
    }

    /// A failure, as the last thing said.
    pub fn failure(&self, failure: &Failure) {
        if failure.silent {
            return;
        }
        self.talk(if self.json { failure.to_json().to_string() } else { failure.to_text() });
    }
}

fn write_line(stream: &mut impl Write, text: &str) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(b'\n');
    stream.write_all(&bytes)?;
    stream.flush()
}

/// Adds the schema's name.
pub fn with_schema(thing: &str, value: Value) -> Value {
    let mut object = match value {
        Value::Object(object) => object,
        other => Map::from_iter([("value".to_owned(), other)]),
    };
    object.insert("schema".into(), format!("unibus.cli.v1.{thing}").into());
    Value::Object(object)
}

/// A table with a head. Cells are not wrapped: a terminal that is too narrow folds lines better than a
/// table folds its cells.
pub fn render(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

fn records(rows: &[Vec<String>]) -> String {
    rows.iter().map(|row| row.join("\t")).collect::<Vec<_>>().join("\n")
}

/// A number with its thousands separated: `1,203`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things: `1 message`, `1,203 messages`.
pub fn count(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", thousands(number), if number == 1 { "" } else { "s" })
}

/// Bytes for people: `512 B`, `1.5 KiB`, `3.2 GiB`.
pub fn bytes(number: u64) -> String {
    let (mut value, mut units) = (number as f64, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].iter());
    let mut unit = units.next().unwrap_or(&"B");
    while value >= 1024.0 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1024.0, next);
    }
    if *unit == "B" { format!("{number} B") } else { format!("{value:.1} {unit}") }
}

/// A body on one line: text with its control characters escaped, binary as its length and first bytes.
/// It is cut to `width` characters, never inside one; `None` does not cut.
pub fn preview(body: &[u8], width: Option<usize>) -> String {
    let Ok(text) = std::str::from_utf8(body) else {
        let head: String = body.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let more = if body.len() > 16 { "..." } else { "" };
        return format!("<{} bytes: {head}{more}>", body.len());
    };
    let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    let mut shown = String::with_capacity(text.len());
    for (at, c) in text.chars().enumerate() {
        if width.is_some_and(|width| at >= width) {
            shown.push_str("...");
            break;
        }
        match c {
            '\t' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn previews_are_one_line_and_cut_between_characters() {
        assert_eq!(preview(b"hello\n", None), "hello");
        assert_eq!(preview(b"two\nlines\r\n", None), "two\\nlines");
        assert_eq!(preview(b"\x1b[31mred", None), "\\u{1b}[31mred");
        assert_eq!(preview("приве́т".as_bytes(), Some(3)), "при...");
        assert_eq!(preview("при".as_bytes(), Some(3)), "при");
        assert_eq!(preview(&[0xff, 0x00], None), "<2 bytes: ff00>");
        assert_eq!(preview(&[0xff; 20], Some(1)), format!("<20 bytes: {}...>", "ff".repeat(16)));
        assert_eq!(preview(b"", None), "");
    }

    #[test]
    fn previews_of_any_bytes_hold_no_line_break_or_escape() {
        let mut state = 1u64;
        for _ in 0..2_000 {
            let body: Vec<u8> = (0..24)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 57) as u8
                })
                .collect();
            let shown = preview(&body, Some(10));
            assert!(!shown.contains(['\n', '\r', '\x1b']), "{body:?}: {shown:?}");
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1, 0, 1_203].map(|n| count(n, "message")), ["1 message", "0 messages", "1,203 messages"]);
        assert_eq!([512, 1_536, 3_435_973_837].map(bytes), ["512 B", "1.5 KiB", "3.2 GiB"]);
        assert!(bytes(u64::MAX).ends_with("PiB"));
    }

    #[test]
    fn objects_carry_their_schema() {
        assert_eq!(with_schema("room", json!({"a": 1})), json!({"a": 1, "schema": "unibus.cli.v1.room"}));
        assert_eq!(with_schema("x", json!(7)), json!({"value": 7, "schema": "unibus.cli.v1.x"}));
    }

    #[test]
    fn pipes_get_one_record_per_line() {
        let rows = vec![vec!["a".to_owned(), "long text that is not cut ".repeat(20)], vec!["b".into(), "c".into()]];
        let text = records(&rows);
        assert_eq!(text.lines().count(), 2);
        assert!(text.ends_with("b\tc"));
        let table = render(&["name", "value"], &[vec!["x".into(), "1".into()]]);
        assert!(table.lines().next().is_some_and(|line| line.contains("NAME") && line.contains("VALUE")), "{table}");
        assert!(table.lines().last().is_some_and(|line| line.contains('x')), "{table}");
    }
}

//! Small files of `name value` lines with a version and a checksum: readable by the person who has to
//! find out whose disk this is.

use std::fmt::{Display, Write};
use std::path::Path;
use std::str::FromStr;

use super::{FORMAT_VERSION, IdentityError};

/// No such file comes near it.
pub const BYTES_MAX: u64 = 64 << 10;

/// The lines of such a file.
pub struct Fields {
    text: String,
}

impl Fields {
    /// Starts a file of the kind `what`.
    pub fn new(what: &str) -> Self {
        Self { text: format!("{what} {FORMAT_VERSION}\n") }
    }

    /// Adds a line.
    pub fn push(&mut self, name: &str, value: impl Display) {
        writeln!(self.text, "{name} {value}").expect("a String takes everything");
    }

    /// The file's text, with its checksum.
    pub fn render(self) -> String {
        let crc = crc32c::crc32c(self.text.as_bytes());
        format!("{}crc {crc:08x}\n", self.text)
    }

    /// Reads a file of the kind `what`.
    pub fn parse(file: &Path, what: &'static str, bytes: &[u8]) -> Result<Self, IdentityError> {
        let damaged = |found: &str| IdentityError::Damaged {
            file: file.to_path_buf(),
            found: found.to_owned(),
            expected: "an unaltered file of unibus",
        };
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("bytes that are no text"))?;
        let first = text.lines().next().unwrap_or_default();
        let version = first.strip_prefix(what).and_then(|rest| rest.trim().parse::<u32>().ok());
        let version = version.ok_or_else(|| damaged("no header"))?;
        if version > FORMAT_VERSION {
            let path = file.parent().unwrap_or(file).to_path_buf();
            return Err(IdentityError::NewerVersion { path, found: version });
        }
        let (body, crc) = text.rsplit_once("crc ").ok_or_else(|| damaged("no checksum"))?;
        if crc != format!("{:08x}\n", crc32c::crc32c(body.as_bytes())) {
            return Err(damaged("a checksum that does not match"));
        }
        Ok(Self { text: body.to_owned() })
    }

    /// The values of all lines called `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.text.lines().filter_map(move |line| line.strip_prefix(name)?.strip_prefix(' '))
    }

    /// The value of the line called `name`.
    pub fn take<T: FromStr>(&self, file: &Path, name: &str, expected: &'static str) -> Result<T, IdentityError> {
        let value = self.all(name).next();
        value.and_then(|value| value.parse().ok()).ok_or_else(|| IdentityError::Damaged {
            file: file.to_path_buf(),
            found: value.map_or_else(|| format!("no {name}"), |value| format!("{name} {value:?}")),
            expected,
        })
    }
}

//! Subjects name rooms (`agent.scout.in`); filters select subjects (`agent.*.in`, `audit.>`).

use std::fmt;
use std::str::FromStr;

use crate::limits::{SUBJECT_BYTES_MAX, SUBJECT_TOKENS_MAX};

/// A text that is no subject or filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {found:?}: {problem}")]
pub struct InvalidSubject {
    /// "subject" or "filter".
    pub what: &'static str,
    /// What was given, cut to 80 characters.
    pub found: String,
    /// What is wrong with it, and what is allowed.
    pub problem: &'static str,
}

/// The name of a room: tokens of `A-Z a-z 0-9 _ -` joined by dots; 1 to 16 tokens, at most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(Box<str>);

/// Selects subjects: `*` stands for one token, a last `>` for one or more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubjectFilter(Box<str>);

impl Subject {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SubjectFilter {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one subject that it selects, when it has no wildcard.
    pub fn as_subject(&self) -> Option<Subject> {
        self.0.parse().ok()
    }

    /// Whether it selects `subject`.
    pub fn matches(&self, subject: &Subject) -> bool {
        let mut wanted = self.0.split('.');
        let mut tokens = subject.0.split('.');
        loop {
            match (wanted.next(), tokens.next()) {
                (None, None) => return true,
                (Some(">"), Some(_)) => return true,
                (Some("*"), Some(_)) => {}
                (Some(want), Some(token)) if want == token => {}
                _ => return false,
            }
        }
    }
}

impl FromStr for Subject {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        check(text, "subject", |token, _| is_word(token))?;
        Ok(Self(text.into()))
    }
}

impl FromStr for SubjectFilter {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        check(text, "filter", |token, last| is_word(token) || token == "*" || (token == ">" && last))?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SubjectFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

fn check(text: &str, what: &'static str, allowed: impl Fn(&str, bool) -> bool) -> Result<(), InvalidSubject> {
    let invalid = |problem| Err(InvalidSubject { what, found: text.chars().take(80).collect(), problem });
    if text.is_empty() {
        return invalid("empty; write tokens of A-Z a-z 0-9 _ - joined by dots");
    }
    if text.len() > SUBJECT_BYTES_MAX {
        return invalid("longer than 255 bytes");
    }
    let count = text.split('.').count();
    if count > SUBJECT_TOKENS_MAX {
        return invalid("more than 16 tokens");
    }
    for (at, token) in text.split('.').enumerate() {
        if !allowed(token, at + 1 == count) {
            return invalid(match (token, what) {
                ("", _) => "a token is empty: no leading, trailing or double dots",
                ("*" | ">", "subject") => "a room's subject has no wildcard",
                (">", _) => "'>' stands only at the end",
                _ => "a token has a character other than A-Z a-z 0-9 _ -",
            });
        }
    }
    Ok(())
}

//! Parsers of names and ids: what they take they give back, and nothing makes them panic.

use proptest::prelude::*;
use unibus_proto::id::{DeviceId, Handle, ProducerId, RoomId};
use unibus_proto::limits::{HANDLE_BYTES_MAX, SUBJECT_BYTES_MAX, SUBJECT_TOKENS_MAX};
use unibus_proto::subject::{Subject, SubjectFilter};

/// Matching as the definition says it, token by token; the product walks two iterators instead.
fn matches(filter: &[&str], subject: &[&str]) -> bool {
    match (filter, subject) {
        ([], []) => true,
        ([">"], [_, ..]) => true,
        ([want, filter @ ..], [token, subject @ ..]) => (*want == "*" || want == token) && matches(filter, subject),
        _ => false,
    }
}

fn subject() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]{1,2}", 1..6).prop_map(|tokens| tokens.join("."))
}

fn filter() -> impl Strategy<Value = String> {
    let token = prop_oneof![3 => "[ab]{1,2}", 2 => Just("*".to_owned())];
    (prop::collection::vec(token, 0..5), any::<bool>()).prop_map(|(mut tokens, is_open)| {
        if is_open || tokens.is_empty() {
            tokens.push(">".into());
        }
        tokens.join(".")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_filter_matches_as_defined(subject in subject(), filter in filter()) {
        let (parsed, select): (Subject, SubjectFilter) = (subject.parse().unwrap(), filter.parse().unwrap());
        let tokens = |text: &'static str| text.split('.').collect::<Vec<_>>();
        let (filter_text, subject_text) = (String::leak(filter), String::leak(subject));
        prop_assert_eq!(select.matches(&parsed), matches(&tokens(filter_text), &tokens(subject_text)));
    }

    #[test]
    fn every_subject_is_a_filter_that_selects_itself(subject in subject()) {
        let parsed: Subject = subject.parse().unwrap();
        let filter: SubjectFilter = subject.parse().unwrap();
        prop_assert!(filter.matches(&parsed));
        prop_assert_eq!(filter.as_subject(), Some(parsed.clone()));
        prop_assert_eq!(parsed.to_string(), subject);
    }

    #[test]
    fn a_filter_with_a_wildcard_is_no_subject(filter in filter()) {
        let parsed: SubjectFilter = filter.parse().unwrap();
        prop_assert_eq!(parsed.as_subject().is_none(), filter.contains(['*', '>']));
        prop_assert_eq!(filter.parse::<Subject>().is_err(), filter.contains(['*', '>']));
    }

    #[test]
    fn any_text_is_taken_whole_or_refused(text in ".{0,300}") {
        if let Ok(subject) = text.parse::<Subject>() {
            prop_assert_eq!(subject.as_str(), &text);
            prop_assert!(text.len() <= SUBJECT_BYTES_MAX && text.split('.').count() <= SUBJECT_TOKENS_MAX);
            prop_assert!(text.split('.').all(|token| !token.is_empty()));
        }
        if let Ok(filter) = text.parse::<SubjectFilter>() {
            prop_assert_eq!(filter.as_str(), &text);
        }
        if let Ok(handle) = text.parse::<Handle>() {
            prop_assert_eq!(handle.as_str(), &text);
            prop_assert!(text.len() <= HANDLE_BYTES_MAX && !text.contains('\0'));
        }
        let _ = (text.parse::<RoomId>(), text.parse::<DeviceId>(), text.parse::<ProducerId>());
    }

    #[test]
    fn handles_are_as_their_rule_says(text in "[a-zA-Z0-9._ -]{0,70}") {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let legal = (1..=64).contains(&text.len())
            && text.starts_with(is_word)
            && text.chars().all(|c| is_word(c) || ".-_".contains(c));
        prop_assert_eq!(text.parse::<Handle>().is_ok(), legal);
    }

    #[test]
    fn ids_parse_back(bytes: [u8; 16], short: [u8; 8]) {
        let (room, producer) = (RoomId(bytes), ProducerId(short));
        prop_assert_eq!(room.to_string().parse(), Ok(room));
        prop_assert_eq!(RoomId::from_bytes(&room.to_bytes()), Ok(room));
        prop_assert_eq!(producer.to_string().parse(), Ok(producer));
        prop_assert!(RoomId::from_bytes(&short).is_err());
        prop_assert!(producer.to_string().parse::<RoomId>().is_err());
    }

    #[test]
    fn hexadecimal_means_digits_only(at in 0..32_usize, odd in "[g-zG-Z+ _-]") {
        let mut text = "ab".repeat(16);
        text.replace_range(at..=at, &odd);
        prop_assert!(text.parse::<RoomId>().is_err(), "{}", text);
    }
}

#[test]
fn limits_are_inclusive() {
    let longest = format!("{}.{}", "a".repeat(127), "b".repeat(127));
    assert_eq!(longest.len(), SUBJECT_BYTES_MAX);
    assert!(longest.parse::<Subject>().is_ok());
    assert!(format!("{longest}c").parse::<Subject>().is_err());
    assert!(vec!["a"; 16].join(".").parse::<Subject>().is_ok());
    assert!(vec!["a"; 17].join(".").parse::<Subject>().is_err());
}

#[test]
fn the_error_says_what_is_wrong() {
    let problem = |text: &str| text.parse::<Subject>().unwrap_err().to_string();
    assert!(problem("").contains("empty"));
    assert!(problem("a..b").contains("a token is empty"));
    assert!(problem(".a").contains("a token is empty"));
    assert!(problem("a.*").contains("no wildcard"));
    assert!(problem("a b").contains("a character other than"));
    let problem = "a.>.b".parse::<SubjectFilter>().unwrap_err().to_string();
    assert!(problem.contains("only at the end"));
}

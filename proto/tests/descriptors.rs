//! Rules over all `.proto` files, read from the compiled descriptors.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(unibus_proto::DESCRIPTORS).unwrap();
    let files: Vec<_> = set.file.into_iter().filter(|file| file.package().starts_with("unibus.")).collect();
    assert!(files.len() >= 10, "the descriptors are there");
    files
}

fn all_messages<'a>(messages: &'a [DescriptorProto], into: &mut Vec<&'a DescriptorProto>) {
    for message in messages {
        into.push(message);
        all_messages(&message.nested_type, into);
    }
}

/// A map has no order, so the same value could be other bytes on another replica.
#[test]
fn no_map_fields_in_log_row_and_peer() {
    let mut packages = BTreeSet::new();
    for file in files().iter().filter(|file| file.package() != "unibus.v1") {
        packages.insert(file.package().to_owned());
        let mut messages = Vec::new();
        all_messages(&file.message_type, &mut messages);
        for message in messages {
            let is_map = message.options.as_ref().is_some_and(|options| options.map_entry());
            assert!(!is_map, "{}: {} is a map", file.name(), message.name());
        }
    }
    assert_eq!(packages.len(), 3, "{packages:?}");
}

/// What the log and the rows embed of `unibus.v1` must have none either; so the API has none at all.
#[test]
fn no_map_fields_in_the_api() {
    for file in files() {
        let mut messages = Vec::new();
        all_messages(&file.message_type, &mut messages);
        assert!(messages.iter().all(|message| !message.options.as_ref().is_some_and(|options| options.map_entry())));
    }
}

/// Descriptor paths (descriptor.proto): what is named at each place of a file.
fn named_places(file: &FileDescriptorProto) -> Vec<(Vec<i32>, String)> {
    let mut places = Vec::new();
    for (at, message) in (0..).zip(&file.message_type) {
        message_places(vec![4, at], message, message.name(), &mut places);
    }
    for (at, kind) in (0..).zip(&file.enum_type) {
        places.push((vec![5, at], kind.name().into()));
        for (value_at, value) in (0..).zip(&kind.value) {
            places.push((vec![5, at, 2, value_at], format!("{}.{}", kind.name(), value.name())));
        }
    }
    for (at, service) in (0..).zip(&file.service) {
        places.push((vec![6, at], service.name().into()));
        for (method_at, method) in (0..).zip(&service.method) {
            places.push((vec![6, at, 2, method_at], format!("{}.{}", service.name(), method.name())));
        }
    }
    places
}

fn message_places(path: Vec<i32>, message: &DescriptorProto, name: &str, places: &mut Vec<(Vec<i32>, String)>) {
    let below = |kind, at| [&path[..], &[kind, at]].concat();
    for (at, field) in (0..).zip(&message.field) {
        places.push((below(2, at), format!("{name}.{}", field.name())));
    }
    for (at, oneof) in (0..).zip(&message.oneof_decl) {
        places.push((below(8, at), format!("{name}.{}", oneof.name())));
    }
    for (at, nested) in (0..).zip(&message.nested_type) {
        message_places(below(3, at), nested, &format!("{name}.{}", nested.name()), places);
    }
    places.push((path, name.into()));
}

fn uncommented(file: &FileDescriptorProto) -> Vec<String> {
    let info = file.source_code_info.as_ref().expect("compiled with source info");
    let has_comment = |path: &[i32]| {
        let mut locations = info.location.iter().filter(|location| location.path == path);
        locations.any(|location| !location.leading_comments().trim().is_empty())
    };
    let places = named_places(file).into_iter();
    places.filter(|(path, _)| !has_comment(path)).map(|(_, name)| format!("{}: {name}", file.name())).collect()
}

/// A Python user needs nothing but the `.proto` files.
#[test]
fn everything_has_a_comment() {
    let missing: Vec<_> = files().iter().flat_map(uncommented).collect();
    assert!(missing.is_empty(), "without a comment:\n{}", missing.join("\n"));
}

#[test]
fn a_missing_comment_is_noticed() {
    let mut file = files().into_iter().find(|file| file.name() == "unibus/v1/room.proto").unwrap();
    let places = named_places(&file).len();
    assert!(places > 70, "the walk sees the file: {places}");
    file.source_code_info.as_mut().unwrap().location.iter_mut().for_each(|location| location.leading_comments = None);
    assert_eq!(uncommented(&file).len(), places);
}

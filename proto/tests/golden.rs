//! Durable bytes: what this version writes into logs, rows and signed documents, byte for byte. A file that
//! changes here breaks clusters that run; new files are fine. `UPDATE_GOLDEN=1` writes them.

mod examples;

use std::path::PathBuf;
use std::{env, fs};

use examples as ex;
use prost::Message;
use unibus_proto::signed::Document;
use unibus_proto::{log, row, v1};

/// The encoding equals the file, and the file decodes to the value.
fn check<M: Message + Default + PartialEq>(name: &str, value: &M) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"));
    let found = hex(&value.encode_to_vec());
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(found, golden, "{name} is encoded otherwise than {}", path.display());
    assert!(M::decode(&unhex(&golden)[..]).unwrap() == *value, "{name} decodes to another value");
}

/// 32 bytes a line.
fn hex(bytes: &[u8]) -> String {
    let line = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).chain(["\n".into()]).collect::<String>();
    bytes.chunks(32).map(line).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn every_kind_of_command() {
    use log::proposal::Command;
    for command in ex::commands() {
        // Exhaustive, so that a new kind cannot be added without its bytes.
        let name = match &command {
            Command::ClusterInit(_) => "cluster-init",
            Command::UserAdd(_) => "user-add",
            Command::UserChange(_) => "user-change",
            Command::RoomReserve(_) => "room-reserve",
            Command::RoomActivate(_) => "room-activate",
            Command::RoomCreate(_) => "room-create",
            Command::RosterAppend(_) => "roster-append",
            Command::PublishBatch(_) => "publish-batch",
            Command::UserAttach(_) => "user-attach",
            Command::DeviceListPut(_) => "device-list-put",
            Command::Tick(_) => "tick",
            Command::SegmentSealed(_) => "segment-sealed",
            Command::CommandBatch(_) => "command-batch",
            Command::NodeAdd(_) => "node-add",
            Command::NodeDrain(_) => "node-drain",
            Command::NodeRemove(_) => "node-remove",
            Command::NodeGone(_) => "node-gone",
        };
        check(&format!("proposal-{name}"), &log::Proposal { at_ms: ex::AT, command: Some(command) });
    }
    assert_eq!(ex::commands().len(), 17, "one of each kind");
}

#[test]
fn every_kind_of_reply() {
    use log::reply::Reply;
    for reply in ex::replies() {
        let name = match &reply {
            Reply::Rejected(_) => "rejected",
            Reply::Done(_) => "done",
            Reply::User(_) => "user",
            Reply::Room(_) => "room",
            Reply::Roster(_) => "roster",
            Reply::Publish(_) => "publish",
            Reply::DeviceList(_) => "device-list",
            Reply::CommandBatch(_) => "command-batch",
        };
        check(&format!("reply-{name}"), &log::Reply { at_ms: ex::AT, reply: Some(reply) });
    }
    assert_eq!(ex::replies().len(), 8, "one of each kind");
}

#[test]
fn every_row() {
    let group = row::GroupRow { at_ms: ex::AT, rooms: 3, segment_bytes: 4, segment: 5, segment_live: 0 };
    check("row-group", &group);
    check("row-group-live", &row::GroupRow { segment_live: 6, ..group });
    let cluster = row::ClusterRow { cluster_id: ex::id(1), shards: 8, feature_level: 1, ..row::ClusterRow::default() };
    check("row-cluster", &cluster);
    check("row-cluster-nodes", &row::ClusterRow { nodes_version: 3, ..cluster });
    check("row-node", &row::NodeRow { node: Some(ex::node()), ..row::NodeRow::default() });
    check("row-node-state", &ex::node_row());
    check("row-user", &row::UserRow { user: Some(ex::user()) });
    check("row-directory", &ex::directory_row());
    check("row-subject", &row::SubjectRow { room_id: ex::id(2) });
    check("row-request", &ex::request_row());
    check("row-room", &ex::room_row());
    check("row-member", &row::MemberRow { role: 2, key_fingerprint: ex::hash(3), since_sequence: 4 });
    check("row-roster", &row::RosterRow { entry: Some(ex::roster_entry()) });
    check("row-producer", &ex::producer_row());
    check("row-answers", &ex::answers_row());
    check("row-producer-count", &row::ProducerCountRow { count: 64 });
    check("row-device-list", &ex::device_list_row());
    check("row-device", &row::DeviceRow { bundle: Some(ex::signed()) });
    let segment = row::SegmentRow { length: 64 << 20, hash: ex::hash(9), live: 0 };
    check("row-segment", &segment);
    check("row-segment-live", &row::SegmentRow { live: 5, ..segment });
    check("row-room-retained", &ex::retained_room_row());
    check("row-span", &ex::span_row());
}

#[test]
fn what_lies_in_snapshots() {
    check("snapshot-manifest", &ex::snapshot_manifest());
}

#[test]
fn what_lies_in_segments() {
    check("delivery-message", &ex::delivery(v1::delivery::Entry::Message(ex::stored_message())));
    check("delivery-roster", &ex::delivery(v1::delivery::Entry::Roster(ex::roster_entry())));
}

/// The payload's bytes and the signature over them: Ed25519 is deterministic.
fn check_document<D: Document + PartialEq>(document: &D) {
    check(&format!("document-{}", D::TYPE), document);
    check(&format!("signed-{}", D::TYPE), &ex::sign(document));
    let key = ex::signing_key().verifying_key();
    let verified = ex::sign(document).verify::<D>(ex::CLUSTER, &[key.as_bytes()]).unwrap();
    assert!(verified == *document);
}

#[test]
fn every_signed_document() {
    check_document(&ex::bundle());
    check_document(&ex::device_list());
    check_document(&ex::roster_event());
    check_document(&ex::claims());
}

#[test]
fn checkpoints() {
    check("checkpoint-head", &ex::checkpoint_head());
}

//! Who may do what: every RPC of the descriptors, asked by every kind of caller for his own, another's and an
//! absent object, through the gRPC adapters, against a policy written by hand (`policy.txt`).

mod policy;
mod streams;
mod wire;
mod world;

use bytes::Bytes;
use prost::Message;
use tonic::Status;
use tonic_types::StatusExt;
use unibus_proto::v1::{PublishResponse, publish_outcome};

use policy::{CALLERS, lines};
use world::World;

/// The reason of a refusal, of whichever kind, or "OK".
fn code(rpc: &str, answer: &Result<Bytes, Status>) -> String {
    match answer {
        Ok(answer) if rpc.starts_with("MessageService/Publish") => published(answer),
        Ok(_) => "OK".into(),
        Err(status) => status.get_details_error_info().map_or_else(|| format!("{status:?}"), |info| info.reason),
    }
}

/// A publish answers for itself and for each message.
fn published(answer: &Bytes) -> String {
    let answer = PublishResponse::decode(answer.clone()).unwrap();
    let rejects = answer.outcomes.into_iter().filter_map(|outcome| match outcome.outcome {
        Some(publish_outcome::Outcome::Reject(reject)) => Some(reject.code),
        _ => None,
    });
    answer.failure.map(|failure| failure.code).into_iter().chain(rejects).next().unwrap_or_else(|| "OK".into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rpc_answers_every_caller_as_the_policy_says() {
    let world = World::new().await;
    let (mut cells, mut wrong) = (0, Vec::new());
    for line in lines() {
        for (caller, expected) in CALLERS.into_iter().zip(line.expected) {
            let request = world.request(line.rpc, caller, line.object).await;
            let answer = wire::call(&world.routes, line.rpc, &world.credential(caller), request).await;
            let found = code(line.rpc, &answer);
            if found != expected {
                let why = answer.err().map(|status| status.message().to_owned()).unwrap_or_default();
                wrong.push(format!("{} {} by {caller}: {found}, expected {expected} {why}", line.rpc, line.object));
            } else if found == "OK" {
                world.restore(line.rpc, caller, line.object).await;
            }
            cells += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {cells} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Everything of an answer, byte for byte, as text.
fn whole(answer: Result<Bytes, Status>) -> String {
    let text = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
    match answer {
        Ok(answer) => text(&answer),
        Err(status) => format!("{:?} {} {}", status.code(), status.message(), text(status.details())),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_one_may_not_read_answers_byte_for_byte_as_one_that_is_not_there() {
    let world = World::new().await;
    let is_hidden = |line: &policy::Line| line.object == "absent" && line.expected.contains(&"ROOM_NOT_FOUND");
    let hidden: Vec<_> = lines().into_iter().filter(is_hidden).collect();
    assert!(hidden.len() >= 8, "{} RPCs name a room", hidden.len());
    for line in hidden {
        for caller in ["stranger", "reader", "member", "room-adm", "clu-adm"] {
            let mut answers = Vec::new();
            for object in ["other", "absent"] {
                let request = world.request(line.rpc, caller, object).await;
                let answer = wire::call(&world.routes, line.rpc, &world.credential(caller), request).await;
                assert_eq!(code(line.rpc, &answer), "ROOM_NOT_FOUND", "{} {object} by {caller}", line.rpc);
                answers.push(world.as_if_absent(&whole(answer)));
            }
            assert_eq!(answers[0], answers[1], "{} by {caller}", line.rpc);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_and_subjects_with_path_tricks_are_refused_as_invalid() {
    use unibus_proto::v1::{CreateRoomRequest, GetRoomRequest, GetUserRequest, SubscribeRequest};
    let world = World::new().await;
    for name in ["../host", "a/b", "/etc/passwd", "a\\b", "..", "a..b", "a\0b", "a%2fb", "a b", "a\nb", "\u{202e}a", ""]
    {
        let room = Some(crate::cluster::by_subject(name));
        let handle_too = !matches!(name, "a..b");
        let CreateRoomRequest { event, actor } = world.host.create_request(name);
        let requests = [
            ("RoomService/GetRoom", GetRoomRequest { room }.encode_to_vec()),
            ("RoomService/CreateRoom", CreateRoomRequest { event, actor }.encode_to_vec()),
            (
                "MessageService/Subscribe",
                SubscribeRequest { filter: name.into(), ..Default::default() }.encode_to_vec(),
            ),
            ("UserService/GetUser", GetUserRequest { handle: name.into() }.encode_to_vec()),
        ];
        let credential = wire::Credential::Token(world.host.token.clone());
        for (rpc, request) in requests.into_iter().filter(|(rpc, _)| handle_too || !rpc.starts_with("User")) {
            let answer = wire::call(&world.routes, rpc, &credential, request.into()).await;
            assert_eq!(code(rpc, &answer), "INVALID", "{rpc} of {name:?}: {answer:?}");
        }
    }
}

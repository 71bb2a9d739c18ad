//! `room`.

use serde_json::{Value, json};
use unibus_client::Client;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{Handle, RoomId};
use unibus_proto::limits::PAGE_MAX;
use unibus_proto::subject::{Subject, SubjectFilter};
use unibus_proto::v1::{Room, RoomMember, RoomPolicy, RoomRetention, RoomRole};

use crate::args::{Global, MemberCommand, RetainArgs, RoomCommand};
use crate::exit::{Exit, Failure, Result};
use crate::output::{Output, bytes, thousands};
use crate::session::{During, Session, confirm};
use crate::time::rfc3339;

/// Runs a command of `room`.
pub async fn run(command: &RoomCommand, global: &Global, out: Output) -> Result<()> {
    match command {
        RoomCommand::Create { subject, plaintext, ephemeral, retain } => {
            if !plaintext {
                return Err(refuse_encrypted(subject));
            }
            create(subject, !ephemeral, *retain, global, out).await
        }
        RoomCommand::Update { subject, retain } => update(subject, *retain, global, out).await,
        RoomCommand::List { filter, limit } => {
            list(&Session::open(global, out)?.client, filter.as_ref(), *limit, out).await
        }
        RoomCommand::Info { subject } => info(&Session::open(global, out)?.client, subject, out).await,
        RoomCommand::Member(command) => member(command, global, out).await,
    }
}

/// Nobody should take a room for encrypted that is not: it has to be said.
fn refuse_encrypted(subject: &Subject) -> Failure {
    let message = format!(
        "create room {subject}: encrypted rooms do not exist yet; --plaintext says that you know that the nodes can \
         read every message of this room"
    );
    Failure { exit: Exit::Failed, ..Failure::of_code(ErrorCode::VersionSkew, message) }
        .remedy(format!("unibusctl room create {subject} --plaintext"))
}

async fn create(subject: &Subject, persist: bool, retain: RetainArgs, global: &Global, out: Output) -> Result<()> {
    let client = Session::open(global, out)?.client;
    let policy = with_retention(RoomPolicy { persist, ..RoomPolicy::default() }, retain);
    let made =
        client.create_room(subject, policy).await.during(format!("create room {subject}")).map_err(|failure| {
            if failure.code == ErrorCode::AlreadyExists.as_str() {
                return failure.remedy(format!("unibusctl room info {subject}"));
            }
            failure
        })?;
    out.either("room", || describe(&made.room), || subject.to_string())?;
    let next = match persist {
        true => format!("unibusctl pub {subject} --lines < FILE"),
        false => format!("unibusctl sub {subject}, and elsewhere: unibusctl pub {subject} MESSAGE"),
    };
    out.hint(format!(
        "created: sequence 0 in shard s{}, fsynced on a majority; you are its admin\nnext: {next}",
        made.room.shard
    ));
    Ok(())
}

async fn update(subject: &Subject, retain: RetainArgs, global: &Global, out: Output) -> Result<()> {
    if retain == RetainArgs::default() {
        return Err(Failure::usage(
            "room update: found nothing to change, expected --retain-age, --retain-bytes or --retain-messages",
        ));
    }
    let client = Session::open(global, out)?.client;
    let change = |policy| with_retention(policy, retain);
    let done = client.update_room_policy(subject, change).await.during(format!("update room {subject}"))?;
    let room = done.room.unwrap_or_default();
    let kept = retention_words(&room.policy.unwrap_or_default());
    out.either("room", || describe(&room), || format!("{subject}\t{kept}"))?;
    out.hint(format!(
        "holds from sequence {} of {subject} on, fsynced on a majority; kept: {kept}\nnext: unibusctl room info {subject}",
        done.sequence
    ));
    Ok(())
}

/// The policy with what was given changed.
fn with_retention(policy: RoomPolicy, retain: RetainArgs) -> RoomPolicy {
    let before = policy.retention.unwrap_or_default();
    let retention = RoomRetention {
        max_age_ms: retain.retain_age.unwrap_or(before.max_age_ms),
        max_bytes: retain.retain_bytes.unwrap_or(before.max_bytes),
        max_messages: retain.retain_messages.unwrap_or(before.max_messages),
    };
    RoomPolicy { retention: Some(retention).filter(|retention| *retention != RoomRetention::default()), ..policy }
}

fn retention_words(policy: &RoomPolicy) -> String {
    if !policy.persist {
        return "nothing but the roster: messages go to whoever is subscribed".into();
    }
    let retention = policy.retention.unwrap_or_default();
    let mut words = Vec::new();
    if retention.max_age_ms > 0 {
        words.push(age_words(retention.max_age_ms));
    }
    if retention.max_bytes > 0 {
        words.push(bytes(retention.max_bytes));
    }
    if retention.max_messages > 0 {
        words.push(format!("{} entries", thousands(retention.max_messages)));
    }
    if words.is_empty() { "everything".into() } else { words.join(", ") }
}

fn age_words(ms: u64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let unit = units.into_iter().find(|(unit, _)| ms.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{ms}ms"), |(unit, name)| format!("{}{name}", ms / unit))
}

async fn list(client: &Client, filter: Option<&SubjectFilter>, limit: u32, out: Output) -> Result<()> {
    let (mut rooms, mut token) = (Vec::new(), String::new());
    loop {
        let wanted = limit.saturating_sub(rooms.len() as u32).clamp(1, PAGE_MAX);
        let (page, next) = client.list_rooms_page(filter, wanted, &token).await.during("list rooms")?;
        rooms.extend(page);
        token = next;
        if token.is_empty() || rooms.len() >= limit as usize {
            break;
        }
    }
    rooms.truncate(limit as usize);
    if out.json {
        let list: Vec<_> = rooms.iter().map(describe).collect();
        return out.object("room_list", json!({ "rooms": list, "more": !token.is_empty() }));
    }
    let rows: Vec<_> = rooms
        .iter()
        .map(|room| {
            vec![
                room.subject.clone(),
                role_name(room.own_role()).into(),
                room.head.to_string(),
                room.members.to_string(),
                bytes(room.size_bytes),
                format!("s{}", room.shard),
                policy_words(room),
            ]
        })
        .collect();
    out.table(&["subject", "your role", "head", "members", "size", "shard", "policy"], &rows)?;
    match (rooms.is_empty(), token.is_empty()) {
        (true, _) => out.talk("no rooms that you may read\nnext: unibusctl room create SUBJECT --plaintext"),
        (false, false) => out.talk(format!("showing {}, there are more: --limit", thousands(rooms.len() as u64))),
        (false, true) => {}
    }
    Ok(())
}

async fn info(client: &Client, subject: &Subject, out: Output) -> Result<()> {
    let room = client.room(subject).await.during(format!("room {subject}"))?;
    if out.json {
        return out.object("room", describe(&room));
    }
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    out.table(
        &["field", "value"],
        &[
            row("subject", room.subject.clone()),
            row("id", room_id(&room)),
            row("policy", policy_words(&room)),
            row("your role", role_name(room.own_role()).into()),
            row("kept", retention_words(&room.policy.unwrap_or_default())),
            row("floor", room.floor.to_string()),
            row("head", room.head.to_string()),
            row("size", bytes(room.size_bytes)),
            row("members", room.members.to_string()),
            row("roster height", room.roster_height.to_string()),
            row("shard", format!("s{}", room.shard)),
            row("leader", if room.leader == 0 { "none".into() } else { format!("node {}", room.leader) }),
            row("created", rfc3339(room.created_ms)),
        ],
    )
}

async fn member(command: &MemberCommand, global: &Global, out: Output) -> Result<()> {
    let client = Session::open(global, out)?.client;
    match command {
        MemberCommand::List { subject } => list_members(&client, subject, out).await,
        MemberCommand::Add { subject, user, role } => {
            let done = client
                .add_member(subject, user, (*role).into())
                .await
                .during(format!("add {user} to room {subject}"))
                .map_err(|failure| unknown_user(failure, user))?;
            told(out, subject, user, role_name((*role).into()), done.sequence)
        }
        MemberCommand::Role { subject, user, role } => {
            let step = format!("make {user} {} of room {subject}", role_name((*role).into()));
            let done = client.set_member_role(subject, user, (*role).into()).await.during(step)?;
            told(out, subject, user, role_name((*role).into()), done.sequence)
        }
        MemberCommand::Remove { subject, user } => {
            let consequence = format!("{user} will read and publish nothing more in {subject}");
            confirm(global, out, &consequence, user.as_str())?;
            let done =
                client.remove_member(subject, user).await.during(format!("remove {user} from room {subject}"))?;
            told(out, subject, user, "none", done.sequence)
        }
    }
}

/// A user who is no member is unknown to this command in the same words as one who does not exist.
fn unknown_user(failure: Failure, user: &Handle) -> Failure {
    if [ErrorCode::UserNotFound.as_str(), ErrorCode::DeviceNotFound.as_str()].contains(&failure.code.as_str()) {
        return failure.remedy(format!("unibusctl user add {user} --key {user}.pub"));
    }
    failure
}

fn told(out: Output, subject: &Subject, user: &Handle, role: &str, sequence: u64) -> Result<()> {
    out.either(
        "member_change",
        || json!({ "subject": subject.as_str(), "user": user.as_str(), "role": role, "sequence": sequence }),
        || format!("{user}\t{role}"),
    )?;
    out.hint(format!(
        "holds from sequence {sequence} of {subject} on, fsynced on a majority\nnext: unibusctl room member list {subject}"
    ));
    Ok(())
}

async fn list_members(client: &Client, subject: &Subject, out: Output) -> Result<()> {
    let members = client.members(subject).await.during(format!("members of room {subject}"))?;
    if out.json {
        let list: Vec<_> = members.iter().map(describe_member).collect();
        return out.object("member_list", json!({ "subject": subject.as_str(), "members": list }));
    }
    let row = |member: &RoomMember| {
        let fingerprint = hex(&member.key_fingerprint);
        vec![member.user.clone(), role_name(member.role()).into(), member.since_sequence.to_string(), fingerprint]
    };
    out.table(&["user", "role", "since", "key fingerprint"], &members.iter().map(row).collect::<Vec<_>>())
}

fn describe_member(member: &RoomMember) -> Value {
    json!({
        "user": member.user,
        "role": role_name(member.role()),
        "since_sequence": member.since_sequence,
        "key_fingerprint": hex(&member.key_fingerprint),
    })
}

/// The JSON shape of a room.
fn describe(room: &Room) -> Value {
    let policy = room.policy.unwrap_or_default();
    let retention = policy.retention.unwrap_or_default();
    json!({
        "id": room_id(room),
        "subject": room.subject,
        "policy": {
            "encrypt": policy.encrypt,
            "persist": policy.persist,
            "sign": policy.sign,
            "retention": {
                "max_age_ms": retention.max_age_ms,
                "max_bytes": retention.max_bytes,
                "max_messages": retention.max_messages,
            },
        },
        "shard": room.shard,
        "floor": room.floor,
        "head": room.head,
        "roster_height": room.roster_height,
        "roster_hash": hex(&room.roster_hash),
        "members": room.members,
        "epoch": room.epoch,
        "created": rfc3339(room.created_ms),
        "size_bytes": room.size_bytes,
        "own_role": role_name(room.own_role()),
        "leader_node": room.leader,
    })
}

fn policy_words(room: &Room) -> String {
    let policy = room.policy.unwrap_or_default();
    let words = [
        if policy.encrypt { "encrypted" } else { "plaintext" },
        if policy.persist { "stored" } else { "ephemeral" },
        if policy.sign { "signed" } else { "" },
    ];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(",")
}

fn room_id(room: &Room) -> String {
    RoomId::from_bytes(&room.room_id).map_or_else(|_| hex(&room.room_id), |id| id.to_string())
}

/// The word for a role.
pub fn role_name(role: RoomRole) -> &'static str {
    match role {
        RoomRole::Unspecified => "none",
        RoomRole::Reader => "reader",
        RoomRole::Member => "member",
        RoomRole::Admin => "admin",
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_without_plaintext_is_refused_with_the_command_to_run() {
        let failure = refuse_encrypted(&"ops.dpkg".parse().unwrap());
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.contains("encrypted rooms do not exist yet"), "{}", failure.message);
        assert!(failure.to_text().ends_with("-> unibusctl room create ops.dpkg --plaintext"));
    }

    #[test]
    fn room_shape() {
        let room = Room {
            room_id: vec![0xab; 16].into(),
            subject: "ops.dpkg".into(),
            policy: Some(RoomPolicy { persist: true, ..RoomPolicy::default() }),
            head: 4711,
            own_role: RoomRole::Reader.into(),
            ..Room::default()
        };
        let value = describe(&room);
        assert_eq!(value["id"], "ab".repeat(16));
        assert_eq!(value["head"], 4711);
        assert_eq!(value["own_role"], "reader");
        assert_eq!(value["created"], "1970-01-01T00:00:00.000Z");
        assert_eq!(policy_words(&room), "plaintext,stored");
        assert_eq!(value["policy"]["retention"]["max_bytes"], 0);
    }

    #[test]
    fn what_is_not_given_stays_and_none_lifts_a_bound() {
        let given =
            |retain_age, retain_bytes, retain_messages| RetainArgs { retain_age, retain_bytes, retain_messages };
        let policy = RoomPolicy { persist: true, ..RoomPolicy::default() };
        assert_eq!(with_retention(policy, RetainArgs::default()), policy);
        let week = with_retention(policy, given(Some(604_800_000), Some(1 << 30), None));
        assert_eq!(retention_words(&week), "7d, 1.0 GiB");
        let more = with_retention(week, given(Some(0), None, Some(100_000)));
        assert_eq!(retention_words(&more), "1.0 GiB, 100,000 entries");
        assert_eq!(with_retention(more, given(None, Some(0), Some(0))), policy);
        assert_eq!(retention_words(&policy), "everything");
        assert!(retention_words(&RoomPolicy::default()).starts_with("nothing but the roster"));
    }
}

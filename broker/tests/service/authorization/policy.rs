//! The reference policy: `policy.txt`, read and held against the descriptors.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::FileDescriptorSet;

/// The columns of the policy.
pub const CALLERS: [&str; 11] = [
    "nobody", "garbage", "expired", "rev-dev", "rev-user", "stranger", "reader", "member", "room-adm", "clu-adm",
    "local",
];

/// A line of the policy.
pub struct Line {
    /// Service and method.
    pub rpc: &'static str,
    /// "own", "other", "absent" or "-".
    pub object: &'static str,
    /// The expected code per caller.
    pub expected: Vec<&'static str>,
}

pub fn lines() -> Vec<Line> {
    let lines = include_str!("policy.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(parse).collect()
}

fn parse(line: &'static str) -> Line {
    let mut words = line.split_whitespace();
    let [rpc, object] = [words.next(), words.next()].map(|word| word.expect("an RPC and an object"));
    let code = |symbol| match symbol {
        "ok" => "OK",
        "U" => "UNAUTHENTICATED",
        "F" => "FORBIDDEN",
        "N" => "ROOM_NOT_FOUND",
        "X" => "USER_NOT_FOUND",
        "I" => "INVALID",
        _ => panic!("{line}: {symbol} is no answer"),
    };
    let expected: Vec<_> = words.map(code).collect();
    assert_eq!(expected.len(), CALLERS.len(), "{line}: a column per caller");
    assert!(["own", "other", "absent", "-"].contains(&object), "{line}");
    Line { rpc, object, expected }
}

/// Every RPC of the client API, as the descriptors have them.
fn described() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(unibus_proto::DESCRIPTORS).unwrap();
    let files = set.file.iter().filter(|file| file.package() == "unibus.v1");
    let services = files.flat_map(|file| &file.service);
    let name = |service: &str, method: &str| format!("{service}/{method}");
    services.flat_map(|service| service.method.iter().map(|rpc| name(service.name(), rpc.name()))).collect()
}

#[test]
fn the_policy_has_every_rpc_of_the_descriptors_and_no_other() {
    let described = described();
    assert!(described.len() >= 34, "{described:?}");
    let listed: BTreeSet<String> = lines().iter().map(|line| line.rpc.to_owned()).collect();
    assert_eq!(described.difference(&listed).collect::<Vec<_>>(), Vec::<&String>::new(), "RPCs without a line");
    assert_eq!(listed.difference(&described).collect::<Vec<_>>(), Vec::<&String>::new(), "lines without an RPC");
    let mut seen = BTreeSet::new();
    for line in lines() {
        assert!(seen.insert((line.rpc, line.object)), "{} {} is listed twice", line.rpc, line.object);
    }
}

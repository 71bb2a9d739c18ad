//! The nodes' own comparison of their replicas at one index, as `unibusctl verify` asks for it.

use std::time::{Duration, Instant};

use unibus_client::Client;
use unibus_proto::v1::{GroupVerification, VerifyResponse};

use crate::invariants::Violation;

/// Without load, every replica can be compared within this time.
const PATIENCE: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(200);

/// Asks until every group was compared over all `nodes`; answers how many groups that were.
pub async fn ask(client: &Client, nodes: usize) -> Result<u64, Vec<Violation>> {
    let began = Instant::now();
    loop {
        let missing = match client.verify().await {
            Ok(found) => match judge(&found, nodes)? {
                missing if missing.is_empty() => return Ok(found.groups.len() as u64),
                missing => missing,
            },
            Err(error) => error.to_string(),
        };
        if began.elapsed() > PATIENCE {
            let what = format!("not in {PATIENCE:?}: {missing}");
            return Err(vec![Violation { invariant: "replicas can be compared", what }]);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Every difference is a violation; else answers what could not be compared, empty when all was.
fn judge(found: &VerifyResponse, nodes: usize) -> Result<String, Vec<Violation>> {
    let broken = |what: &String| Violation { invariant: "I10 replicas agree", what: what.clone() };
    let differences: Vec<_> = found.groups.iter().flat_map(|group| &group.differences).map(broken).collect();
    if !differences.is_empty() {
        return Err(differences);
    }
    let incomplete = |group: &&GroupVerification| !group.missing.is_empty() || group.replicas.len() != nodes;
    let missing = |group: &GroupVerification| {
        let (of, why) = (group.replicas.len(), group.missing.join(", "));
        format!("group {}: {of} replicas asked, expected {nodes}; {why}", group.group)
    };
    if found.groups.is_empty() {
        return Ok("the answer has no group".into());
    }
    Ok(found.groups.iter().filter(incomplete).map(missing).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use unibus_proto::v1::ReplicaContent;

    use super::*;

    fn found(replicas: usize, differences: &[&str], missing: &[&str]) -> VerifyResponse {
        let texts = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        let group = GroupVerification {
            replicas: vec![ReplicaContent::default(); replicas],
            differences: texts(differences),
            missing: texts(missing),
            ..GroupVerification::default()
        };
        VerifyResponse { groups: vec![group] }
    }

    #[test]
    fn a_difference_is_a_violation_also_where_somebody_was_not_compared() {
        let broken = judge(&found(3, &["state hash of n2"], &["n3 is slow"]), 3).unwrap_err();
        assert_eq!(broken.len(), 1);
        assert!(broken[0].what.contains("n2"), "{broken:?}");
    }

    #[test]
    fn what_was_not_compared_is_asked_for_again() {
        assert_eq!(judge(&found(3, &[], &[]), 3), Ok(String::new()));
        assert!(judge(&found(3, &[], &["n3 is slow"]), 3).unwrap().contains("n3 is slow"));
        assert!(judge(&found(2, &[], &[]), 3).unwrap().contains("expected 3"));
        assert!(!judge(&VerifyResponse::default(), 3).unwrap().is_empty());
    }
}

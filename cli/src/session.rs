//! From a profile to a signed-in client, and what the SDK does meanwhile told to the user.

use std::io::{self, BufRead, IsTerminal};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use unibus_client::{Client, ClientConfig, ClientEvent, Error, TokioPlatform};
use unibus_proto::code::{ErrorCode, Outcome};
use unibus_proto::files::{FileError, Identity};

use crate::args::Global;
use crate::exit::{Exit, Failure, Happened, Result};
use crate::output::{self, Output};
use crate::profile::{Chosen, Store};

/// Retries shorter than this are nobody's concern.
const QUIET: Duration = Duration::from_millis(500);
/// Signals closer together than this are one.
const SAME_SIGNAL: Duration = Duration::from_millis(300);
/// The same reason is said again only after so long.
const REPEAT: Duration = Duration::from_secs(5);

/// A way to the cluster that has not been used yet.
pub struct Session {
    /// The client; it signs in with its first call.
    pub client: Client,
    /// The profile.
    pub chosen: Chosen,
}

impl Session {
    /// Reads the profile and its files. Nothing is sent yet.
    pub fn prepare(global: &Global) -> Result<Self> {
        let pin = match &global.node[..] {
            [] => None,
            [node] => Some(node.clone()),
            more => return Err(Failure::usage(format!("--node: found {} of them, expected one", more.len()))),
        };
        let chosen = Store::of_user()?.choose(global.profile.as_deref())?;
        let identity = Identity::load(&chosen.profile.identity).map_err(|error| identity_unusable(&chosen, &error))?;
        let platform = TokioPlatform::from_ca_file(&chosen.profile.ca)
            .map_err(|error| Failure::local(format!("profile {:?}: {}", chosen.name, error.message)))?;
        let config = ClientConfig::new(chosen.profile.nodes.clone()).pinned(pin).patience(global.timeout);
        Ok(Self { client: Client::unconnected(platform, config, identity), chosen })
    }

    /// Reads the profile and tells the user when the cluster keeps him waiting.
    pub fn open(global: &Global, out: Output) -> Result<Self> {
        let session = Self::prepare(global)?;
        let events = session.client.events();
        tokio::spawn(tell(session.client.clone(), events, out, global.verbose));
        Ok(session)
    }
}

fn identity_unusable(chosen: &Chosen, error: &FileError) -> Failure {
    let failure = Failure::local(format!("profile {:?}: {error}", chosen.name));
    let remedy = match error {
        FileError::Mode { path, .. } => format!("chmod 600 {}", path.display()),
        _ => format!("unibusctl profile show {}", chosen.name),
    };
    Failure { exit: Exit::Denied, ..failure.remedy(remedy) }
}

/// Says why it takes long, and under `--verbose` what the SDK does about it.
async fn tell(client: Client, mut events: mpsc::Receiver<ClientEvent>, out: Output, verbose: bool) {
    let mut waiting = Waiting::default();
    while let Some(event) = events.recv().await {
        match event {
            ClientEvent::Retrying { why, .. } if waiting.should_say(why.code, Instant::now()) => {
                out.hint(format!("waiting: {} [{}]", why.message, why.code));
            }
            ClientEvent::FailedOver { from, to, why } if verbose => {
                out.hint(failover(&client, &from, &to, &why));
            }
            ClientEvent::SignedIn { node } if verbose => out.hint(format!("signed in at {}", client.node_label(&node))),
            ClientEvent::Resent { count } if verbose => {
                out.hint(format!("sent {} again", output::count(count as u64, "message")))
            }
            _ => {}
        }
    }
}

/// A failover in words.
pub fn failover(client: &Client, from: &str, to: &str, why: &Error) -> String {
    let (from, to) = (client.node_label(from), client.node_label(to));
    format!("failover: {from} -> {to}: {} [{}]", why.message, why.code)
}

/// Decides when a wait is worth a word.
#[derive(Default)]
struct Waiting {
    since: Option<Instant>,
    last_event: Option<Instant>,
    said: Option<(ErrorCode, Instant)>,
}

impl Waiting {
    fn should_say(&mut self, code: ErrorCode, now: Instant) -> bool {
        // A pause between retries is at most half a second, an attempt some seconds: after longer it is a new wait.
        let fresh = self.last_event.is_none_or(|last| now - last > 2 * REPEAT);
        let since = *self.since.insert(self.since.filter(|_| !fresh).unwrap_or(now));
        self.last_event = Some(now);
        let told = self.said.is_some_and(|(said, at)| said == code && now - at < REPEAT);
        if now - since < QUIET || told {
            return false;
        }
        self.said = Some((code, now));
        true
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Self::of_code(error.code, error.message);
        // An attempt before the last one may have had an effect.
        if error.outcome == Outcome::Unknown && failure.happened == Happened::No {
            return Self { exit: Exit::Unknown, retry: "same_id", happened: Happened::Unknown, ..failure };
        }
        failure
    }
}

/// Names the step and its object in an error.
pub trait During<T> {
    /// Puts `step` before the message.
    fn during(self, step: impl AsRef<str>) -> Result<T>;
}

impl<T> During<T> for std::result::Result<T, Error> {
    fn during(self, step: impl AsRef<str>) -> Result<T> {
        self.map_err(|error| {
            // The SDK names the step as well; once is enough.
            let failure = Failure::from(error);
            if failure.message.starts_with(step.as_ref()) { failure } else { failure.during(step) }
        })
    }
}

/// Asks on a terminal to type the name of what is about to be destroyed; elsewhere the command itself
/// is the answer.
pub fn confirm(global: &Global, out: Output, consequence: &str, name: &str) -> Result<()> {
    if global.yes || !out.err_tty || !io::stdin().is_terminal() {
        return Ok(());
    }
    out.talk(format!("{consequence}\ntype {name:?} to go on:"));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() == name {
        return Ok(());
    }
    Err(Failure::local(format!("not confirmed: found {:?}, expected {name:?}; nothing was changed", answer.trim()))
        .remedy("--yes answers the question"))
}

/// Completes at Ctrl-C; a second Ctrl-C ends the program at once.
pub async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // No handler can be installed: the default action is still in place.
        std::future::pending::<()>().await;
    }
    tokio::spawn(async {
        // `timeout` and some shells signal the process and its group: both are the same Ctrl-C.
        tokio::time::sleep(SAME_SIGNAL).await;
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(Exit::Interrupted.number().into());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_attempt_makes_the_outcome_unknown() {
        let mut error = Error::new(ErrorCode::NoLeader, "no quorum");
        assert_eq!(Failure::from(error.clone()).exit, Exit::Unavailable);
        error.outcome = Outcome::Unknown;
        let failure = Failure::from(error);
        assert_eq!((failure.exit, failure.retry), (Exit::Unknown, "same_id"));
        assert_eq!(failure.to_json()["happened"], "unknown");
    }

    #[test]
    fn steps_are_named_once() {
        let error = || Err::<(), _>(Error::new(ErrorCode::RoomNotFound, "get room: ops.x"));
        assert_eq!(error().during("get room").unwrap_err().message, "get room: ops.x");
        assert_eq!(error().during("sub").unwrap_err().message, "sub: get room: ops.x");
    }

    #[test]
    fn only_long_waits_are_told_and_not_too_often() {
        let (start, mut waiting) = (Instant::now(), Waiting::default());
        let mut say = |code, ms| waiting.should_say(code, start + Duration::from_millis(ms));
        assert!(!say(ErrorCode::Unreachable, 0));
        assert!(!say(ErrorCode::Unreachable, 300));
        assert!(say(ErrorCode::Unreachable, 700));
        assert!(!say(ErrorCode::Unreachable, 1_000));
        assert!(say(ErrorCode::NoLeader, 1_200), "another reason");
        assert!(say(ErrorCode::NoLeader, 6_500), "said again after a while");
        assert!(!say(ErrorCode::NoLeader, 60_000), "a new wait begins quietly");
    }
}

//! Who is connected: how many connections there are, how many of a user, and how many of one source that
//! have not signed in yet. No sockets and no clock here; `server.rs` asks it.
//!
//! A connection belongs to nobody until the first request on it that carries a good token. Until then it
//! counts for where it comes from, so that one host that never signs in cannot keep the others out; from
//! then on it counts for the user.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use unibus_proto::code::ErrorCode;
use unibus_proto::id::Handle;
use unibus_proto::limits::{CONNECTIONS_MAX, CONNECTIONS_PER_USER_MAX};

use crate::service::{Failure, Outcome};

/// Connections of one source (an IPv4 address, an IPv6 /64) that have not signed in: many clients start at
/// once on one host, and each signs in within milliseconds.
pub const NOT_SIGNED_IN_MAX: usize = 128;
/// Users of one connection: a gateway may speak for several.
const USERS_MAX: usize = 64;
/// Sign-ins of one connection that are being read or decided: each may be as large as a device list.
const SIGN_INS_MAX: usize = 4;
/// The hint when a connection signs in too often at once.
const SIGN_IN_HINT: Duration = Duration::from_millis(200);

/// The connections of a port.
#[derive(Default)]
pub struct Connections {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: usize,
    not_signed_in: BTreeMap<IpAddr, usize>,
    by_user: BTreeMap<Handle, usize>,
}

/// One connection; a request's extensions carry it. Counted until its last clone is dropped.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    table: Arc<Connections>,
    source: IpAddr,
    is_signed_in: AtomicBool,
    users: Mutex<Vec<Handle>>,
    sign_ins: AtomicUsize,
}

impl Connections {
    /// Counts a new connection, or says why it is refused.
    pub fn open(self: &Arc<Self>, address: IpAddr) -> Result<Connection, String> {
        let source = source(address);
        let mut state = self.state();
        if state.open >= CONNECTIONS_MAX {
            return Err(format!("{CONNECTIONS_MAX} connections are open"));
        }
        let waiting = state.not_signed_in.entry(source).or_default();
        if *waiting >= NOT_SIGNED_IN_MAX {
            return Err(format!("{NOT_SIGNED_IN_MAX} connections from {source} have not signed in"));
        }
        *waiting += 1;
        state.open += 1;
        Ok(Connection(Arc::new(Inner {
            table: Arc::clone(self),
            source,
            is_signed_in: AtomicBool::new(false),
            users: Mutex::default(),
            sign_ins: AtomicUsize::new(0),
        })))
    }

    /// Open connections.
    pub fn count(&self) -> usize {
        self.state().open
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn no_longer_waits(&mut self, source: IpAddr) {
        decrement(&mut self.not_signed_in, &source);
    }
}

impl Connection {
    /// Where it comes from: an IPv4 address, or an IPv6 /64.
    pub fn source(&self) -> IpAddr {
        self.0.source
    }

    /// Whether a user has shown a good token on it.
    pub fn is_signed_in(&self) -> bool {
        self.0.is_signed_in.load(Ordering::Acquire)
    }

    /// A request of a signed-in user came on it: the first one counts it for him.
    pub fn used_by(&self, user: &Handle) -> Outcome<()> {
        let mut users = self.0.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.contains(user) {
            return Ok(());
        }
        if users.len() >= USERS_MAX {
            let message = format!("{USERS_MAX} users speak on this connection, its limit; open another one");
            return Err(Failure::new(ErrorCode::QuotaExceeded, message));
        }
        let mut state = self.0.table.state();
        let count = state.by_user.entry(user.clone()).or_default();
        if *count >= CONNECTIONS_PER_USER_MAX {
            let message = format!(
                "user {user} has {CONNECTIONS_PER_USER_MAX} connections to this node, the most a user may have; \
                 close some: one connection carries many requests and subscriptions"
            );
            return Err(Failure::new(ErrorCode::QuotaExceeded, message));
        }
        *count += 1;
        users.push(user.clone());
        if !self.0.is_signed_in.swap(true, Ordering::AcqRel) {
            state.no_longer_waits(self.0.source);
        }
        Ok(())
    }

    /// Admits a request that needs no token, as long as few are under way.
    pub fn begin_sign_in(&self) -> Outcome<SignInPermit> {
        let permit = SignInPermit(self.clone());
        if self.0.sign_ins.fetch_add(1, Ordering::AcqRel) < SIGN_INS_MAX {
            return Ok(permit);
        }
        let message = format!("sign-in: {SIGN_INS_MAX} are under way on this connection, its limit; wait for them");
        Err(Failure::new(ErrorCode::Overloaded, message).after(SIGN_IN_HINT))
    }
}

/// A sign-in that is under way.
pub struct SignInPermit(Connection);

impl Drop for SignInPermit {
    fn drop(&mut self) {
        self.0.0.sign_ins.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut state = self.table.state();
        state.open -= 1;
        if !*self.is_signed_in.get_mut() {
            state.no_longer_waits(self.source);
        }
        for user in self.users.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            decrement(&mut state.by_user, &user);
        }
    }
}

fn decrement<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// What counts as one source: whoever has an IPv6 address has the /64 around it.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn user(name: &str) -> Handle {
        name.parse().expect("a handle")
    }

    #[test]
    fn a_user_has_a_bounded_number_of_connections_and_gets_them_back() {
        let table = Arc::new(Connections::default());
        let open = || table.open(address("10.0.0.1")).expect("room for it");
        let mut held: Vec<Connection> = (0..CONNECTIONS_PER_USER_MAX).map(|_| open()).collect();
        held.iter().for_each(|connection| connection.used_by(&user("alice")).expect("within the limit"));
        let one_more = open();
        assert_eq!(one_more.used_by(&user("alice")).expect_err("over it").code, ErrorCode::QuotaExceeded);
        assert!(!one_more.is_signed_in(), "a refusal is no sign-in");
        one_more.used_by(&user("bob")).expect("another user");
        held[0].used_by(&user("alice")).expect("counted already");
        held.pop();
        one_more.used_by(&user("alice")).expect("one was closed");
        drop((held, one_more));
        assert_eq!(table.count(), 0);
        assert!(table.state().by_user.is_empty() && table.state().not_signed_in.is_empty());
    }

    #[test]
    fn a_source_that_never_signs_in_keeps_no_other_out() {
        let table = Arc::new(Connections::default());
        let silent: Vec<_> = (0..NOT_SIGNED_IN_MAX).map(|n| table.open(address(&format!("2001:db8::{n:x}")))).collect();
        assert!(table.open(address("2001:db8::ffff:1")).is_err(), "the same /64");
        let other = table.open(address("2001:db8:0:1::1")).expect("another /64");
        silent[0].as_ref().expect("open").used_by(&user("alice")).expect("signed in");
        table.open(address("2001:db8::1")).expect("one of them signed in");
        assert_eq!(source(address("::ffff:10.1.2.3")), address("10.1.2.3"));
        drop(other);
    }

    #[test]
    fn the_connections_of_a_node_are_bounded() {
        let table = Arc::new(Connections::default());
        let open = |n: usize| table.open(address(&format!("10.0.{}.{}", n / 100, n % 100)));
        let held: Vec<_> = (0..CONNECTIONS_MAX).map(open).collect::<Result<_, _>>().expect("room for all");
        assert!(open(0).is_err_and(|why| why.contains("2000")));
        drop(held);
        open(0).expect("they were closed");
    }

    #[test]
    fn few_sign_ins_of_a_connection_are_under_way() {
        let connection = Arc::new(Connections::default()).open(address("10.0.0.1")).expect("room");
        let mut permits: Vec<_> = (0..SIGN_INS_MAX).map(|_| connection.begin_sign_in().expect("room")).collect();
        assert_eq!(connection.begin_sign_in().err().expect("full").code, ErrorCode::Overloaded);
        permits.pop();
        connection.begin_sign_in().expect("one ended");
    }
}

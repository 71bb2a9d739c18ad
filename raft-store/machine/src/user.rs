//! The cluster's users: an allowlist. Nothing is ever overwritten, and one active admin always stays.

use unibus_proto::code::ErrorCode;
use unibus_proto::id::Handle;
use unibus_proto::log::{UserAdd, UserChange, UserReply};
use unibus_proto::row::UserRow;
use unibus_proto::v1::{Reject, User, UserRole, UserStatus};

use crate::event::Event;
use crate::fields::{invalid, parse, public_key, reject, require};
use crate::key::{self, Key, ordinal};
use crate::request::once;
use crate::rows::{self, Rows};
use crate::step::{Answer, Step};

/// The actor of commands that come through a node's local socket; no user has this handle.
pub const LOCAL_ACTOR: &str = "local";
/// Users are looked through in pages of this size when the last admin is at stake.
const SCAN_PAGE: usize = 256;

pub(crate) fn add<R: Rows>(step: &mut Step<'_, R>, add: UserAdd) -> Result<Answer, Reject> {
    once(step, &add.request_id, ("UserAdd", &add), |step| add_new(step, &add))
}

fn add_new<R: Rows>(step: &mut Step<'_, R>, add: &UserAdd) -> Result<Answer, Reject> {
    let handle: Handle = parse(&add.handle)?;
    require(handle.as_str() != LOCAL_ACTOR, || invalid(format!("handle {LOCAL_ACTOR:?} is reserved; choose another")))?;
    public_key(&add.user_key, "user key")?;
    let role = UserRole::try_from(add.role).unwrap_or_default();
    require(role != UserRole::Unspecified, || invalid("user role: found none, expected MEMBER or ADMIN"))?;
    check_actor(step.rows, &add.actor)?;
    if let Some(user) = find(step.rows, handle.as_str()) {
        require(user.user_key == add.user_key, || {
            reject(
                ErrorCode::AlreadyExists,
                format!("user {handle} exists with another key; nothing was changed; choose another handle"),
            )
        })?;
        return Ok(answer(user, false));
    }
    let user = User {
        handle: add.handle.clone(),
        user_key: add.user_key.clone(),
        role: role.into(),
        status: UserStatus::Active.into(),
        created_ms: step.now(),
    };
    Ok(store(step, handle, user, true))
}

pub(crate) fn change<R: Rows>(step: &mut Step<'_, R>, change: UserChange) -> Result<Answer, Reject> {
    once(step, &change.request_id, ("UserChange", &change), |step| change_existing(step, &change))
}

fn change_existing<R: Rows>(step: &mut Step<'_, R>, change: &UserChange) -> Result<Answer, Reject> {
    let handle: Handle = parse(&change.handle)?;
    let role = UserRole::try_from(change.role).map_err(|_| invalid(format!("user role {}: unknown", change.role)))?;
    let status =
        UserStatus::try_from(change.status).map_err(|_| invalid(format!("user status {}: unknown", change.status)))?;
    check_actor(step.rows, &change.actor)?;
    let before = find(step.rows, handle.as_str()).ok_or_else(|| {
        reject(ErrorCode::UserNotFound, format!("user {handle}: not found; list the users with `unibusctl user list`"))
    })?;
    let mut user = before.clone();
    if role != UserRole::Unspecified {
        user.set_role(role);
    }
    if status != UserStatus::Unspecified {
        user.set_status(status);
    }
    let rises_revoked = user.status() == UserStatus::Revoked && user.role() > before.role();
    require(!rises_revoked, || {
        reject(ErrorCode::Forbidden, format!("user {handle} is revoked; reinstate him before giving him a role"))
    })?;
    let loses_admin = is_active_admin(&before) && !is_active_admin(&user);
    require(!loses_admin || has_other_admin(step.rows, handle.as_str()), || {
        reject(
            ErrorCode::Forbidden,
            format!("user {handle} is the last active admin of the cluster; make another user admin first"),
        )
    })?;
    if user == before {
        return Ok(answer(user, false));
    }
    Ok(store(step, handle, user, false))
}

/// The actor as of this place in the log: who was admin at admission may have lost it since.
pub(crate) fn check_actor<R: Rows>(rows: &R, actor: &str) -> Result<(), Reject> {
    let allowed = actor == LOCAL_ACTOR || find(rows, actor).is_some_and(|user| is_active_admin(&user));
    require(allowed, || {
        let actor: String = actor.chars().take(80).collect();
        reject(ErrorCode::Forbidden, format!("{actor:?} is no active admin of the cluster; ask one to do this"))
    })
}

/// The user with this handle.
pub(crate) fn find<R: Rows>(rows: &R, handle: &str) -> Option<User> {
    rows::get::<UserRow>(rows, &Key::User(handle))?.user
}

pub(crate) fn is_active_admin(user: &User) -> bool {
    user.role() == UserRole::Admin && user.status() == UserStatus::Active
}

fn has_other_admin<R: Rows>(rows: &R, except: &str) -> bool {
    let (mut from, to) = key::range_of_kind(ordinal::USER);
    loop {
        let page = rows.scan(&from, &to, SCAN_PAGE);
        let Some((last, _)) = page.last() else { return false };
        from = [last, &[0][..]].concat();
        let mut users = page.into_iter().filter_map(|(key, value)| rows::decode::<UserRow>(&key, value).user);
        if users.any(|user| user.handle != except && is_active_admin(&user)) {
            return true;
        }
    }
}

fn store<R: Rows>(step: &mut Step<'_, R>, handle: Handle, user: User, created: bool) -> Answer {
    rows::put(step.rows, &Key::User(handle.as_str()), &UserRow { user: Some(user.clone()) });
    step.events.push(Event::UserChanged { user: handle });
    answer(user, created)
}

fn answer(user: User, created: bool) -> Answer {
    Answer::User(UserReply { user: Some(user), created })
}

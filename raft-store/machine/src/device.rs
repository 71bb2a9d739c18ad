//! Devices: bundles signed by device and user key, in hash-chained lists signed by the user key (E2E 4.1).
//!
//! The checks are public, so that admission runs the very same ones.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use unibus_proto::code::ErrorCode;
use unibus_proto::id::{ClusterId, DeviceId, Handle};
use unibus_proto::limits::{DEVICE_BUNDLE_BYTES_MAX, DEVICE_LIST_BYTES_MAX, DEVICES_MAX, ENDED_DEVICES_MAX};
use unibus_proto::log::{DeviceListPut, DeviceListReply, UserAttach};
use unibus_proto::row::{DeviceListRow, DeviceRow};
use unibus_proto::signed::sha256;
use unibus_proto::v1::{DeviceBundle, DeviceEnd, DeviceKind, DeviceList, Reject, Signed};

use crate::event::Event;
use crate::fields::{at_most, hash, invalid, parse, public_key, reject, require};
use crate::key::{self, Key};
use crate::rows::{self, Rows};
use crate::signatures;
use crate::step::{Answer, Step, done};

/// Algorithms that a bundle names, and bytes of each.
const ALGORITHMS_MAX: usize = 16;
const ALGORITHM_BYTES_MAX: usize = 64;

/// A device whose bundle was verified.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedDevice {
    /// Its id, which matches its keys.
    pub id: DeviceId,
    /// SHA-256 of the bundle's payload: what device lists name.
    pub hash: [u8; 32],
    /// The bundle.
    pub bundle: DeviceBundle,
}

impl VerifiedDevice {
    /// Refuses a device that has expired by `now_ms`.
    pub fn check_live(&self, now_ms: u64) -> Result<(), Reject> {
        let expires = self.bundle.expires_ms;
        require(expires == 0 || now_ms < expires, || {
            let message = format!("device {} expired at {expires} ms, it is {now_ms} ms; renew its bundle", self.id);
            reject(ErrorCode::Forbidden, message)
        })
    }
}

/// Checks a bundle: signed by the device and by the user, of this user, with an id that matches its keys.
pub fn verify_bundle(
    cluster: ClusterId,
    signed: &Signed,
    user: &Handle,
    user_key: &[u8],
) -> Result<VerifiedDevice, Reject> {
    at_most(signed.encoded_len(), DEVICE_BUNDLE_BYTES_MAX, "bytes of a device bundle")?;
    let bundle: DeviceBundle = signed.decode_unverified().map_err(invalid)?;
    let key = public_key(&bundle.ed25519_key, "device key")?;
    signatures::verify::<DeviceBundle>(cluster, signed, &[&key, user_key]).map_err(invalid)?;
    require(bundle.user == user.as_str(), || {
        invalid(format!("device bundle: it is of user {:?}, expected {user}", bundle.user))
    })?;
    require(bundle.user_key_fingerprint == sha256(user_key)[..], || {
        invalid("device bundle: its user key fingerprint is not that of the user's key")
    })?;
    let curve = hash(&bundle.curve25519_key, "curve25519 key")?;
    let id = DeviceId::of_keys(&key, &curve);
    require(bundle.device_id == id.0[..], || invalid(format!("device bundle: its keys belong to device id {id}")))?;
    check_description(&bundle)?;
    Ok(VerifiedDevice { id, hash: signed.payload_hash(), bundle })
}

fn check_description(bundle: &DeviceBundle) -> Result<(), Reject> {
    match DeviceKind::try_from(bundle.kind).unwrap_or_default() {
        DeviceKind::Unspecified => return Err(invalid("device kind: found none, expected service, agent or person")),
        DeviceKind::Agent => drop(parse::<Handle>(&bundle.owner)?),
        DeviceKind::Service | DeviceKind::Person => {
            require(bundle.owner.is_empty(), || invalid("device bundle: only an agent's device has an owner"))?;
        }
    }
    require(bundle.expires_ms == 0 || bundle.expires_ms > bundle.created_ms, || {
        invalid("device bundle: it expires before it was created")
    })?;
    at_most(bundle.algorithms.len(), ALGORITHMS_MAX, "algorithms of a device")?;
    bundle
        .algorithms
        .iter()
        .try_for_each(|name| at_most(name.len(), ALGORITHM_BYTES_MAX, "bytes of an algorithm's name"))
}

/// What a valid device list changes.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceListChange {
    /// Its version.
    pub version: u64,
    /// SHA-256 of its payload.
    pub hash: [u8; 32],
    /// Bundles that it names and the list before did not.
    pub added: Vec<(DeviceId, Signed)>,
    /// Devices that it does not name any more.
    pub ended: Vec<DeviceId>,
}

/// Checks the next device list of a user against his row and the bundles of his live devices.
///
/// The list is signed by the pinned user key and continues the hash chain; each bundle that it names is
/// known or comes along; a device that it no longer names is named as ended, and stays so in all later lists.
pub fn verify_device_list(
    cluster: ClusterId,
    user: &Handle,
    row: &DeviceListRow,
    live: &[Signed],
    put: &DeviceListPut,
) -> Result<DeviceListChange, Reject> {
    let signed = put.device_list.as_ref().ok_or_else(|| invalid("no device list"))?;
    at_most(signed.encoded_len(), DEVICE_LIST_BYTES_MAX, "bytes of a device list")?;
    let list: DeviceList = signed.verify(cluster, &[&row.user_key]).map_err(invalid)?;
    require(list.user == user.as_str(), || invalid(format!("device list: it is of {:?}, expected {user}", list.user)))?;
    check_chain(row, &list)?;
    let named = check_shape(&list)?;
    let live = live_devices(live);
    let fresh = fresh_devices(cluster, user, &row.user_key, &named, &put.bundles)?;
    let kept: BTreeMap<DeviceId, [u8; 32]> =
        live.iter().filter(|(_, hash)| named.contains(*hash)).map(|(&id, &hash)| (id, hash)).collect();
    check_known(&named, &kept, &fresh)?;
    let gone: Vec<DeviceId> =
        live.keys().filter(|id| !kept.contains_key(id) && !fresh.contains_key(id)).copied().collect();
    check_ended(row, &list, &live, &gone, kept.keys().chain(fresh.keys()))?;
    let added = fresh.into_iter().map(|(id, (_, signed))| (id, signed)).collect();
    Ok(DeviceListChange { version: list.version, hash: signed.payload_hash(), added, ended: gone })
}

fn check_chain(row: &DeviceListRow, list: &DeviceList) -> Result<(), Reject> {
    let next = row.version + 1;
    if list.version == next && list.previous_hash == row.hash {
        return Ok(());
    }
    let found =
        if list.version == next { "another list before it".into() } else { format!("version {}", list.version) };
    let message =
        format!("device list: found {found}, expected version {next} after the newest; re-read and sign again");
    Err(Reject { expected: next, ..reject(ErrorCode::SequenceMismatch, message) })
}

/// The bundle hashes that the list names.
fn check_shape(list: &DeviceList) -> Result<BTreeSet<[u8; 32]>, Reject> {
    at_most(list.bundle_hashes.len(), DEVICES_MAX, "devices of a list")?;
    at_most(list.ended.len(), ENDED_DEVICES_MAX, "ended devices of a list")?;
    require(list.bundle_hashes.is_sorted_by(|a, b| a < b), || {
        invalid("device list: its bundle hashes are not ascending")
    })?;
    list.bundle_hashes.iter().map(|bytes| hash(bytes, "bundle hash")).collect()
}

fn live_devices(live: &[Signed]) -> BTreeMap<DeviceId, [u8; 32]> {
    let device = |signed: &Signed| {
        let bundle: DeviceBundle = signed.decode_unverified().ok()?;
        Some((DeviceId::from_bytes(&bundle.device_id).ok()?, signed.payload_hash()))
    };
    live.iter().filter_map(device).collect()
}

type Fresh = BTreeMap<DeviceId, ([u8; 32], Signed)>;

fn fresh_devices(
    cluster: ClusterId,
    user: &Handle,
    user_key: &[u8],
    named: &BTreeSet<[u8; 32]>,
    bundles: &[Signed],
) -> Result<Fresh, Reject> {
    at_most(bundles.len(), DEVICES_MAX, "bundles beside a device list")?;
    let mut fresh = BTreeMap::new();
    for signed in bundles {
        let device = verify_bundle(cluster, signed, user, user_key)?;
        require(named.contains(&device.hash), || {
            invalid(format!("device {}: its bundle comes along, but the list does not name it", device.id))
        })?;
        fresh.insert(device.id, (device.hash, signed.clone()));
    }
    Ok(fresh)
}

/// Each named bundle is one device's, and each device has one.
fn check_known(named: &BTreeSet<[u8; 32]>, kept: &BTreeMap<DeviceId, [u8; 32]>, fresh: &Fresh) -> Result<(), Reject> {
    let known: BTreeSet<_> = kept.values().chain(fresh.values().map(|(hash, _)| hash)).collect();
    require(named.iter().all(|hash| known.contains(hash)), || {
        invalid("device list: it names a bundle that is not known; send the bundle along")
    })?;
    let devices: BTreeSet<_> = kept.keys().chain(fresh.keys()).collect();
    require(devices.len() == named.len(), || invalid("device list: it names two bundles of one device"))
}

fn check_ended<'a>(
    row: &DeviceListRow,
    list: &DeviceList,
    live: &BTreeMap<DeviceId, [u8; 32]>,
    gone: &[DeviceId],
    mut now: impl Iterator<Item = &'a DeviceId>,
) -> Result<(), Reject> {
    let before = ended_before(row);
    let mut ended = BTreeMap::new();
    for device in &list.ended {
        let id = DeviceId::from_bytes(&device.device_id).map_err(invalid)?;
        let reason = DeviceEnd::try_from(device.reason).unwrap_or_default();
        require(reason != DeviceEnd::Unspecified, || invalid(format!("ended device {id}: no reason")))?;
        require(before.contains_key(&id) || live.contains_key(&id), || {
            invalid(format!("ended device {id}: it never was on the list"))
        })?;
        require(ended.insert(id, reason).is_none(), || invalid(format!("ended device {id}: named twice")))?;
    }
    for (id, was) in before {
        let is = ended.get(&id).copied().unwrap_or_default();
        require(is as i32 >= was as i32, || {
            invalid(format!("ended device {id}: a device that ended stays so, and a revoked one stays revoked"))
        })?;
    }
    if let Some(id) = gone.iter().find(|id| !ended.contains_key(id)) {
        return Err(invalid(format!("device {id} is live and not named: name it, or name it as ended")));
    }
    match now.find(|id| ended.contains_key(id)) {
        Some(id) => Err(invalid(format!("device {id} has ended and never comes back; make a new device"))),
        None => Ok(()),
    }
}

fn ended_before(row: &DeviceListRow) -> BTreeMap<DeviceId, DeviceEnd> {
    let list = row.device_list.as_ref().and_then(|signed| signed.decode_unverified::<DeviceList>().ok());
    let ended = list.map(|list| list.ended).unwrap_or_default();
    ended.iter().filter_map(|device| Some((DeviceId::from_bytes(&device.device_id).ok()?, device.reason()))).collect()
}

pub(crate) fn attach<R: Rows>(step: &mut Step<'_, R>, attach: UserAttach) -> Result<Answer, Reject> {
    let user: Handle = parse(&attach.handle)?;
    public_key(&attach.user_key, "user key")?;
    let key = Key::DeviceList(user.as_str());
    if let Some(row) = rows::get::<DeviceListRow>(step.rows, &key) {
        require(row.user_key == attach.user_key, || {
            reject(ErrorCode::AlreadyExists, format!("user {user} is attached with another key; nothing was changed"))
        })?;
        return Ok(done());
    }
    rows::put(step.rows, &key, &DeviceListRow { user_key: attach.user_key, ..Default::default() });
    step.events.push(Event::DevicesChanged { user });
    Ok(done())
}

pub(crate) fn put_list<R: Rows>(step: &mut Step<'_, R>, put: DeviceListPut) -> Result<Answer, Reject> {
    let signed = put.device_list.as_ref().ok_or_else(|| invalid("no device list"))?;
    let user: Handle = parse(&signed.decode_unverified::<DeviceList>().map_err(invalid)?.user)?;
    let row: DeviceListRow = rows::get(step.rows, &Key::DeviceList(user.as_str())).ok_or_else(|| {
        reject(ErrorCode::UserNotFound, format!("user {user} is not attached to this shard; attach his key first"))
    })?;
    if row.version > 0 && row.hash == signed.payload_hash()[..] {
        return Ok(Answer::DeviceList(DeviceListReply { version: row.version }));
    }
    let live = live_bundles(step.rows, &user);
    let change = verify_device_list(step.cluster, &user, &row, &live, &put)?;
    let version = change.version;
    store(step, &user, row, put.device_list, change);
    step.events.push(Event::DevicesChanged { user });
    Ok(Answer::DeviceList(DeviceListReply { version }))
}

fn live_bundles<R: Rows>(rows: &R, user: &Handle) -> Vec<Signed> {
    let (from, to) = key::range_of_devices(user.as_str());
    let devices = rows.scan(&from, &to, usize::MAX).into_iter();
    devices.filter_map(|(key, value)| rows::decode::<DeviceRow>(&key, value).bundle).collect()
}

fn store<R: Rows>(
    step: &mut Step<'_, R>,
    user: &Handle,
    row: DeviceListRow,
    device_list: Option<Signed>,
    change: DeviceListChange,
) {
    for device in change.ended {
        rows::delete(step.rows, &Key::Device(user.as_str(), device));
    }
    for (device, bundle) in change.added {
        rows::put(step.rows, &Key::Device(user.as_str(), device), &DeviceRow { bundle: Some(bundle) });
    }
    let row = DeviceListRow {
        user_key: row.user_key,
        version: change.version,
        hash: change.hash.to_vec().into(),
        device_list,
    };
    rows::put(step.rows, &Key::DeviceList(user.as_str()), &row);
}

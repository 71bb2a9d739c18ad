//! Settings that all nodes of a cluster must have the same, for ever: with others, the same log makes another
//! replica.
//!
//! A directory remembers them from its first entry on (`agreed`), and nodes tell each other with each stream.

use std::path::Path;

use unibus_proto::peer;

use super::text::Fields;
use super::{IdentityError, read_fields, write};
use crate::env::Env;
use crate::store::StoreConfig;

const AGREED: &str = "agreed";
const KIND: &str = "unibus-agreed";

/// What replicas are placed and cut by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Shards and meta: rooms and users are placed by their number.
    pub groups: u32,
    /// Segments are cut at this size.
    pub segment_bytes: u64,
}

/// A setting that two of them have differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Differing {
    /// Its key in the configuration.
    pub key: &'static str,
    /// The one's.
    pub one: u64,
    /// The other's.
    pub other: u64,
}

impl Agreed {
    /// Those of a store.
    pub fn of(config: &StoreConfig) -> Self {
        Self { groups: config.groups, segment_bytes: config.segment_bytes }
    }

    /// What differs first.
    pub fn differs(self, other: Self) -> Option<Differing> {
        let shards = |agreed: Self| u64::from(agreed.groups.saturating_sub(1));
        let settings = [
            Differing { key: "cluster.shards", one: shards(self), other: shards(other) },
            Differing { key: "store.segment_bytes", one: self.segment_bytes, other: other.segment_bytes },
        ];
        settings.into_iter().find(|setting| setting.one != setting.other)
    }

    /// Refuses a directory that was written with others, and remembers these. What has no entries yet, as
    /// `is_blank` says, was not written with any.
    pub(crate) async fn keep<E: Env>(self, env: &E, dir: &Path, is_blank: bool) -> Result<(), IdentityError> {
        let found = Self::load(env, dir).await?;
        if found == Some(self) {
            return Ok(());
        }
        match found.and_then(|found| found.differs(self)).filter(|_| !is_blank) {
            Some(setting) => Err(IdentityError::OtherSetting { path: dir.to_path_buf(), setting }),
            None => self.save(env, dir).await,
        }
    }

    async fn load<E: Env>(env: &E, dir: &Path) -> Result<Option<Self>, IdentityError> {
        let file = &dir.join(AGREED);
        let Some(fields) = read_fields(env, file, KIND).await? else { return Ok(None) };
        Ok(Some(Self {
            groups: fields.take(file, "groups", "a number of groups")?,
            segment_bytes: fields.take(file, "segment-bytes", "a number of bytes")?,
        }))
    }

    async fn save<E: Env>(self, env: &E, dir: &Path) -> Result<(), IdentityError> {
        let mut fields = Fields::new(KIND);
        fields.push("groups", self.groups);
        fields.push("segment-bytes", self.segment_bytes);
        write(env, dir, AGREED, fields).await
    }
}

impl From<Agreed> for peer::Agreed {
    fn from(Agreed { groups, segment_bytes }: Agreed) -> Self {
        Self { groups, segment_bytes }
    }
}

impl From<peer::Agreed> for Agreed {
    fn from(peer::Agreed { groups, segment_bytes }: peer::Agreed) -> Self {
        Self { groups, segment_bytes }
    }
}

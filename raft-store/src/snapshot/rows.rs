//! Rows on their way into and out of a snapshot, page by page: there may be more than fit into memory.

use std::ops::Bound;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::error::StoreError;
use crate::tables::FrozenRows;

/// Rows of one page: enough to be few, small enough to lie in memory.
pub const PAGE_ROWS: usize = 1024;

/// Rows, ascending by key.
pub type RowPage = Vec<(Bytes, Bytes)>;

/// Where the rows of a snapshot come from: they do not change while it is written.
pub trait RowSource: Send + Sync {
    /// The first `limit` rows whose key is greater than `after`; none of them after the last one.
    fn scan<'a>(&'a self, after: Option<&'a [u8]>, limit: usize) -> BoxFuture<'a, Result<RowPage, StoreError>>;
}

impl RowSource for FrozenRows {
    fn scan<'a>(&'a self, after: Option<&'a [u8]>, limit: usize) -> BoxFuture<'a, Result<RowPage, StoreError>> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.range::<[u8], _>((after, Bound::Unbounded)).take(limit);
        let page = range.map(|(key, value)| (key.clone(), value.clone())).collect();
        Box::pin(std::future::ready(Ok(page)))
    }
}

/// The rows of a snapshot that was verified, page by page.
pub struct RowPages(std::vec::IntoIter<(Bytes, Bytes)>);

impl RowPages {
    pub(crate) fn new(rows: RowPage) -> Self {
        Self(rows.into_iter())
    }

    /// The next rows; none after the last one.
    pub async fn next(&mut self) -> Result<Option<RowPage>, StoreError> {
        let page: RowPage = self.0.by_ref().take(PAGE_ROWS).collect();
        Ok((!page.is_empty()).then_some(page))
    }

    /// All that are left.
    pub async fn collect(mut self) -> Result<FrozenRows, StoreError> {
        let mut rows = FrozenRows::new();
        while let Some(page) = self.next().await? {
            rows.extend(page);
        }
        Ok(rows)
    }
}

//! Merging the layers of the tables: the newest one that knows a key decides.

use std::io;
use std::iter::Peekable;

use bytes::Bytes;

use super::checked::CheckedRows;
use super::overlay::Overlay;
use crate::tree::TreeRow;

/// Rows read from the tree at once: the first page has what was asked for, within these.
const PAGE_ROWS: (usize, usize) = (4, 512);

/// Rows of the tree in a range, page by page.
struct TreeRange<'a> {
    tree: &'a CheckedRows,
    from: Vec<u8>,
    to: &'a [u8],
    page: std::vec::IntoIter<TreeRow>,
    page_rows: usize,
    more: bool,
}

impl TreeRange<'_> {
    fn next(&mut self) -> io::Result<Option<TreeRow>> {
        if self.page.len() == 0 && self.more {
            let page = self.tree.scan(&self.from, Some(self.to), self.page_rows)?;
            self.more = page.len() == self.page_rows;
            if let Some((last, _)) = page.last() {
                self.from = [last, &[0][..]].concat();
            }
            self.page_rows = PAGE_ROWS.1;
            self.page = page.into_iter();
        }
        Ok(self.page.next())
    }
}

/// The first `limit` rows of a non-empty range, as `layers` over the tree say, the newest first.
pub(super) fn merge(
    tree: &CheckedRows,
    layers: [Option<&Overlay>; 2],
    (from, to): (&[u8], &[u8]),
    limit: usize,
) -> io::Result<Vec<TreeRow>> {
    let page_rows = limit.clamp(PAGE_ROWS.0, PAGE_ROWS.1);
    let mut range = TreeRange { tree, from: from.to_vec(), to, page: vec![].into_iter(), page_rows, more: true };
    let [mut newest, mut older] =
        layers.map(|layer| layer.into_iter().flat_map(|layer| layer.range(from, to)).peekable());
    let mut stored = range.next()?;
    let mut rows = vec![];
    while rows.len() < limit {
        let keys = [newest.peek().map(|row| row.0), older.peek().map(|row| row.0), stored.as_ref().map(|row| &row.0)];
        let Some(key) = keys.into_iter().flatten().min().cloned() else { break };
        let in_tree = match stored.take_if(|row| row.0 == key) {
            Some((_, value)) => {
                stored = range.next()?;
                Some(value)
            }
            None => None,
        };
        let (in_older, in_newest) = (take(&mut older, &key), take(&mut newest, &key));
        if let Some(value) = in_newest.or(in_older).unwrap_or(in_tree) {
            rows.push((key, value));
        }
    }
    Ok(rows)
}

/// What a layer says of `key`, if it is its next.
fn take<'a>(
    layer: &mut Peekable<impl Iterator<Item = (&'a Bytes, Option<&'a Bytes>)>>,
    key: &Bytes,
) -> Option<Option<Bytes>> {
    layer.next_if(|row| row.0 == key).map(|(_, value)| value.cloned())
}

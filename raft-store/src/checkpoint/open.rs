//! Opening the tree of a group: is it the one that the checkpoint file names, and does it hold what it
//! must? Everything else is discarded.

use super::file::{self, CheckpointFile};
use super::{Current, Home, MARKER_KEY, Marker, OPENING, TREE, TreeOf};
use crate::env::{Disk, Env};
use crate::error::{StoreError, io_at};
use crate::tree::DAMAGED;

/// Why there is no tree to go on with.
enum Refused {
    /// There never was one here.
    Blank,
    /// It is not to be trusted.
    Discard(String),
}

type Opened<E> = Result<Current<E>, Refused>;

fn discard<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Discard(why.into()))
}

impl<E: Env> Home<E> {
    /// The tree, proved, or a blank one.
    pub(super) async fn open(&self) -> Result<Current<E>, StoreError> {
        let opened = match self.refusal().await? {
            Some(why) => discard(why),
            None => {
                self.set(OPENING).await?;
                Box::pin(self.open_existing()).await?
            }
        };
        let current = match opened {
            Ok(current) => current,
            Err(refused) => {
                if let Refused::Discard(why) = refused {
                    let dir = self.dir.display();
                    tracing::warn!(group = %self.place.group, %dir, %why, "tables are discarded and rebuilt from snapshot and log");
                }
                self.start_over().await?
            }
        };
        self.clear(DAMAGED).await?;
        self.clear(OPENING).await?;
        self.remove_others(current.number).await?;
        Ok(current)
    }

    /// Why the tree is not even to be opened.
    async fn refusal(&self) -> Result<Option<String>, StoreError> {
        if self.is_set(DAMAGED).await? {
            return Ok(Some("it gave back something wrong when it was used last".into()));
        }
        let opening = self.is_set(OPENING).await?;
        Ok(opening.then(|| "the start before did not get through opening it".into()))
    }

    async fn open_existing(&self) -> Result<Opened<E>, StoreError> {
        let file = match file::read(&self.env, &self.dir, self.place).await {
            Ok(Some(file)) => file,
            Ok(None) if self.trees().await?.is_empty() => return Ok(Err(Refused::Blank)),
            Ok(None) => return Ok(discard("the checkpoint file is not there")),
            Err(StoreError::Damaged(damage)) => {
                return Ok(discard(format!("the checkpoint file is damaged: {}", damage.found)));
            }
            Err(error) => return Err(error),
        };
        let dir = self.tree_dir(file.tree);
        if !self.env.disk().exists(&dir).await.map_err(io_at("look for", &dir))? {
            return Ok(discard(format!("{} is not there", dir.display())));
        }
        match self.open_tree(file.tree).await? {
            Ok(tree) => Ok(self.adopt(tree, file).await),
            Err(why) => Ok(discard(why)),
        }
    }

    /// The tree at the checkpoint of the file, to which it is brought when a crash left it one behind.
    async fn adopt(&self, tree: TreeOf<E>, file: CheckpointFile) -> Opened<E> {
        let marker = match self.rows(&tree).get(&MARKER_KEY) {
            Ok(Some(marker)) => marker,
            Ok(None) => return discard("it has no marker"),
            Err(error) => return discard(error.to_string()),
        };
        let (found, newest) = (<[u8; 32]>::from(blake3::hash(&marker)), file.marker.name());
        if found == file.base && found != newest {
            let changed = file.rows.into_iter();
            self.put(&tree, changed, &file.marker).await.or_else(discard)?;
        } else if found != newest {
            return discard("its marker is neither of the newest checkpoint nor of the one before");
        }
        let current = Current { number: file.tree, tree, marker: file.marker };
        if current.marker.sum.bytes <= self.config.check_bytes {
            self.prove(&current.tree, &current.marker).await.or_else(discard)?;
        }
        Ok(current)
    }

    /// A blank tree; the old ones are gone before, with what they say about themselves.
    async fn start_over(&self) -> Result<Current<E>, StoreError> {
        let trees = self.trees().await?;
        let path = file::path_in(&self.dir);
        if self.env.disk().exists(&path).await.map_err(io_at("look for", &path))? {
            self.env.disk().remove_file(&path).await.map_err(io_at("remove", &path))?;
        }
        for number in &trees {
            self.remove_tree(*number).await?;
        }
        let number = trees.last().map_or(1, |last| last + 1);
        Box::pin(self.build(number, Marker::default(), None)).await
    }

    /// Trees that a rebuild left behind.
    async fn remove_others(&self, number: u64) -> Result<(), StoreError> {
        for other in self.trees().await?.into_iter().filter(|other| *other != number) {
            self.remove_tree(other).await?;
        }
        Ok(())
    }

    /// The numbers of the trees that are there, ascending.
    async fn trees(&self) -> Result<Vec<u64>, StoreError> {
        let names = self.env.disk().list(&self.dir).await.map_err(io_at("list", &self.dir))?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix(TREE)?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

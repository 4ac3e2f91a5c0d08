//! How much room there is for more volumes, as far as that can be known.
//!
//! Owns the answer to GetCapacity. DigitalOcean tells how many volumes an account may have, and nothing of how much space
//! a region has left; so the answer is the largest volume as long as one more may be made, and nothing otherwise.

use crate::cloud::droplet::Account;
use crate::cloud::page::Page;
use crate::controller::Controller;
use crate::controller::context::CallContext;
use crate::error::{Error, Result};
use crate::request::query::Capacity;
use crate::size::{Gib, SizeLimits};

/// The room for volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What can be had: the size of one more volume, or nothing.
    pub available: Gib,
    /// The smallest and the largest volume.
    pub limits: SizeLimits,
}

impl Controller {
    /// Says how much room there is.
    ///
    /// # Errors
    /// [`Error::NotReady`], [`Error::TimedOut`], [`Error::Api`].
    pub fn room(&self, ctx: &CallContext, want: &Capacity) -> Result<Room> {
        let region = self.droplet_identity.region()?;
        let is_here = want.region.as_ref().is_none_or(|asked| asked == region.as_str());
        if !want.is_supported || !is_here {
            return Ok(Room { available: Gib(0), limits: self.limits });
        }
        let doing = "reading the account's limits";
        let account = ctx.query(doing, Error::api(doing), |cloud| cloud.get_account())?;
        let used = match account.volume_limit {
            None => None,
            // Without a filter there is no doubt about what the total counts.
            Some(_) => {
                let doing = "counting the account's volumes";
                ctx.query(doing, Error::api(doing), |cloud| cloud.list_volumes(None, Page::first().of(1)))?.total
            }
        };
        Ok(Room { available: plan_available(&account, used, &self.limits), limits: self.limits })
    }
}

fn plan_available(account: &Account, used: Option<u64>, limits: &SizeLimits) -> Gib {
    let is_full = account.volume_limit.zip(used).is_some_and(|(limit, used)| used >= limit);
    if is_full || account.status == "locked" { Gib(0) } else { limits.max }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_until_the_account_is_full_or_locked() {
        let limits = SizeLimits::DIGITALOCEAN;
        let table = [
            ("active", None, None, limits.max),
            ("active", Some(100), Some(99), limits.max),
            ("active", Some(100), Some(100), Gib(0)),
            ("active", Some(100), Some(101), Gib(0)),
            ("active", Some(100), None, limits.max),
            ("warning", None, None, limits.max),
            ("locked", None, None, Gib(0)),
        ];
        for (status, volume_limit, used, want) in table {
            let account = Account { status: status.to_owned(), status_message: String::new(), volume_limit };
            assert_eq!(plan_available(&account, used, &limits), want, "{status} {volume_limit:?} {used:?}");
        }
    }
}

//! Pages of volumes.
//!
//! Owns the step from CSI's pages, of any size and starting anywhere, to DigitalOcean's of 200. A token is the number of
//! entries before the page, so it means the same to every plugin and after a restart.

use std::num::NonZeroU32;

use super::Controller;
use crate::cloud::page::Page as CloudPage;
use crate::cloud::volume::Volume;
use crate::error::{Error, Result};
use crate::request::controller::Page;

/// Entries on DigitalOcean's largest page.
const CLOUD_PAGE: usize = 200;

/// Volumes, and where the next page begins, if there is one.
#[derive(Debug)]
pub struct VolumePage {
    /// The volumes of this page.
    pub volumes: Vec<Volume>,
    /// The number of entries before the next page.
    pub next: Option<usize>,
}

impl Controller {
    /// Lists the volumes of the region.
    ///
    /// # Errors
    /// [`Error::BadPageToken`] for a start behind the end, [`Error::NotReady`], [`Error::OutOfTime`], [`Error::Api`].
    pub fn list_volumes(&self, page: &Page) -> Result<VolumePage> {
        let region = self.own_droplet.region()?;
        let time = self.begin();
        let bad_token = || Error::BadPageToken(page.offset.to_string());
        let wanted = page.max_entries.unwrap_or(usize::MAX);
        let mut volumes: Vec<Volume> = Vec::new();
        let mut skip = page.offset % CLOUD_PAGE;
        let number =
            u32::try_from(page.offset / CLOUD_PAGE + 1).ok().and_then(NonZeroU32::new).ok_or_else(bad_token)?;
        let mut at = CloudPage::first().at(number);
        loop {
            let doing = "listing volumes";
            let listed = time.ask(doing, Error::api(doing), |cloud| cloud.list_volumes(Some(&region), at))?;
            let on_page = listed.items.len();
            if on_page < skip || (on_page == 0 && page.offset > 0 && volumes.is_empty()) {
                return Err(bad_token());
            }
            volumes.extend(listed.items.into_iter().skip(skip));
            skip = 0;
            if volumes.len() > wanted || (volumes.len() == wanted && listed.next.is_some()) {
                volumes.truncate(wanted);
                return Ok(VolumePage { volumes, next: Some(page.offset + wanted) });
            }
            match listed.next {
                Some(next) => at = next,
                None => return Ok(VolumePage { volumes, next: None }),
            }
        }
    }
}

//! Pages of a list.
//!
//! Owns which page is asked for and what a list says about the next one. How pages become a CSI list is the caller's.

use std::num::NonZeroU32;

use crate::cloud::json::Paging;
use crate::cloud::request::ApiRequest;

/// The most entries that DigitalOcean puts on one page.
///
/// Source: API reference, "Pagination": `per_page` 1 to 200. What more than 200 does is not documented, so it is never sent.
pub const MAX_PER_PAGE: u32 = 200;

/// Which page of a list to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    number: NonZeroU32,
    per_page: u32,
}

impl Page {
    /// A page by its number, counted from 1 as DigitalOcean does. `per_page` is brought into 1 to 200.
    #[must_use]
    pub fn new(number: NonZeroU32, per_page: u32) -> Page {
        Page { number, per_page: per_page.clamp(1, MAX_PER_PAGE) }
    }

    /// The first page, as long as DigitalOcean allows.
    #[must_use]
    pub fn first() -> Page {
        Page { number: NonZeroU32::MIN, per_page: MAX_PER_PAGE }
    }

    /// The same page number, with another length.
    #[must_use]
    pub fn of(self, per_page: u32) -> Page {
        Page::new(self.number, per_page)
    }

    /// The page of this length that another number names.
    #[must_use]
    pub fn at(self, number: NonZeroU32) -> Page {
        Page { number, ..self }
    }

    /// The page of this length that has the entry of a position, counted from 0, on it. `per_page` as in [`Page::new`].
    #[must_use]
    pub fn with(position: usize, per_page: u32) -> Page {
        let page = Page::new(NonZeroU32::MIN, per_page);
        let before = u32::try_from(position / page.length()).unwrap_or(u32::MAX);
        page.at(NonZeroU32::MIN.saturating_add(before))
    }

    /// The position of its first entry, counted from 0.
    #[must_use]
    pub fn first_position(self) -> usize {
        usize::try_from(self.number.get() - 1).unwrap_or(usize::MAX).saturating_mul(self.length())
    }

    /// The position of the first entry behind it.
    #[must_use]
    pub fn end_position(self) -> usize {
        self.first_position().saturating_add(self.length())
    }

    fn length(self) -> usize {
        usize::try_from(self.per_page).unwrap_or(usize::MAX)
    }

    /// Its number, from 1.
    #[must_use]
    pub fn number(self) -> NonZeroU32 {
        self.number
    }

    /// How many entries it has at most.
    #[must_use]
    pub fn per_page(self) -> u32 {
        self.per_page
    }

    pub(super) fn ask(self, call: ApiRequest) -> ApiRequest {
        call.query("page", self.number).query("per_page", self.per_page)
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiPage<T> {
    /// The entries, in DigitalOcean's order.
    pub items: Vec<T>,
    /// Whether entries were left out that cannot be read: what is not on the page may be there all the same.
    pub has_odd: bool,
    /// The page after this one, when there is one.
    pub next: Option<Page>,
    /// How many entries DigitalOcean says there are; with a filter it is not certain what it counts, so nothing may be
    /// decided from it.
    pub total: Option<u64>,
}

impl<T> ApiPage<T> {
    /// A page of entries, of which those that cannot be read are none.
    pub(super) fn new(entries: impl Iterator<Item = Option<T>>, asked: Page, paging: &Paging) -> ApiPage<T> {
        let mut has_odd = false;
        let items = entries.inspect(|entry| has_odd |= entry.is_none()).flatten().collect();
        // A next page that does not lead forward would make the caller's loop endless.
        let next = paging.next().filter(|next| *next > asked.number).map(|number| asked.at(number));
        ApiPage { items, has_odd, next, total: paging.total() }
    }
}

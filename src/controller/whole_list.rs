//! Reading a list of DigitalOcean to its end, without losing an entry.
//!
//! Owns how pages follow each other. A page is a range of positions, so when somebody deletes an entry of a page that has been
//! read, all that follow move forward by one, and the first of the next page slips into the one before it, unseen: to
//! who reads the list, a volume is gone that is there. So each page begins some entries before the end of the last one, and
//! goes on behind the last entry that is known. The total that DigitalOcean tells would not do: with one entry deleted and
//! another made it is the same.

use std::collections::VecDeque;

use crate::cloud::page::{ApiPage, MAX_PER_PAGE, Page};
use crate::request::query::ListStart;

/// How many entries of the last page are read again: fewer may be deleted meanwhile.
const OVERLAP: usize = 8;

/// How often a list that changes too fast is begun anew.
const TRIES: u32 = 5;

/// One page of CSI's, and where the next one begins, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage<T> {
    /// The entries of this page.
    pub items: Vec<T>,
    /// Where the next page begins.
    pub next: Option<ListStart>,
}

/// How a reading has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reading<T> {
    /// All that was wanted is there.
    Done(ListPage<T>),
    /// What the start names is not where it was: the list has changed since.
    StartMoved,
    /// More entries were deleted between two pages than these have in common.
    Lost,
}

/// Reads a list from a start, or from its beginning, until so many entries are kept or it ends.
///
/// # Errors
/// Those of `fetch`.
pub(super) fn read_list<T, U, E>(
    start: Option<&ListStart>,
    wanted: usize,
    mut fetch: impl FnMut(Page) -> Result<ApiPage<T>, E>,
    id: impl Fn(&T) -> String,
    mut keep: impl FnMut(T) -> Option<U>,
) -> Result<Reading<U>, E> {
    for _ in 1..TRIES {
        match read_once(start, wanted, &mut fetch, &id, &mut keep)? {
            Reading::Lost => {}
            ended @ (Reading::Done(_) | Reading::StartMoved) => return Ok(ended),
        }
    }
    read_once(start, wanted, &mut fetch, &id, &mut keep)
}

/// Reads a list to its end and keeps what is wanted of it; `lost` is the error when it changes faster than it can be read.
///
/// # Errors
/// Those of `fetch`.
pub(super) fn every_entry<T, U, E>(
    fetch: impl FnMut(Page) -> Result<ApiPage<T>, E>,
    id: impl Fn(&T) -> String,
    keep: impl FnMut(T) -> Option<U>,
    lost: impl FnOnce() -> E,
) -> Result<Vec<U>, E> {
    match read_list(None, usize::MAX, fetch, id, keep)? {
        Reading::Done(page) => Ok(page.items),
        Reading::StartMoved | Reading::Lost => Err(lost()),
    }
}

/// What is said of a list that changes faster than it can be read.
pub(super) const CHANGES: &str = "the list changes faster than it can be read";

fn read_once<T, U, E>(
    start: Option<&ListStart>,
    wanted: usize,
    fetch: &mut impl FnMut(Page) -> Result<ApiPage<T>, E>,
    id: &impl Fn(&T) -> String,
    keep: &mut impl FnMut(T) -> Option<U>,
) -> Result<Reading<U>, E> {
    let mut items = Vec::new();
    // The last entries that are known, the latest last.
    let mut known: VecDeque<String> = start.iter().map(|start| start.after.clone()).collect();
    let mut page = page_with(start.map_or(0, |start| start.offset.saturating_sub(OVERLAP)));
    let mut is_first = true;
    loop {
        let listed = fetch(page)?;
        let names: Vec<String> = listed.items.iter().map(id).collect();
        let Some(skip) = plan_skip(&known, &names) else {
            return Ok(if is_first && start.is_some() { Reading::StartMoved } else { Reading::Lost });
        };
        let first = page.first_position();
        if let Some(start) = start.filter(|_| is_first) {
            // Where an entry that cannot be read is left out, positions do not fit, and the total has to do.
            let is_counted = start.total.is_some() && start.total == listed.total;
            if first + skip != start.offset && !is_counted {
                return Ok(Reading::StartMoved);
            }
        }
        is_first = false;
        for (position, (item, name)) in (first..).zip(listed.items.into_iter().zip(names)).skip(skip) {
            if let Some(kept) = keep(item) {
                if items.len() == wanted {
                    return Ok(done(items, position, listed.total, known));
                }
                items.push(kept);
            }
            known.push_back(name);
            if known.len() > OVERLAP {
                known.pop_front();
            }
        }
        if listed.next.is_none() {
            return Ok(Reading::Done(ListPage { items, next: None }));
        }
        let end = page.end_position();
        if items.len() == wanted {
            return Ok(done(items, end, listed.total, known));
        }
        page = page_with(end.saturating_sub(OVERLAP));
    }
}

fn done<U>(items: Vec<U>, offset: usize, total: Option<u64>, known: VecDeque<String>) -> Reading<U> {
    let next = known.into_iter().next_back().map(|after| ListStart { offset, total, after });
    Reading::Done(ListPage { items, next })
}

/// How many entries of a page are known already: all up to the latest known one that is on it. None: no known one is.
fn plan_skip(known: &VecDeque<String>, names: &[String]) -> Option<usize> {
    if known.is_empty() {
        return Some(0);
    }
    known.iter().rev().find_map(|name| names.iter().position(|other| other == name)).map(|position| position + 1)
}

/// The page that has an entry's position on it and reaches as far beyond it as possible.
fn page_with(position: usize) -> Page {
    (MAX_PER_PAGE / 2..=MAX_PER_PAGE)
        .map(|per_page| Page::with(position, per_page))
        .max_by_key(|page| page.end_position())
        .unwrap_or(Page::first())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::num::NonZeroU32;

    /// A list that somebody changes after each page that was read, and the number of the pages.
    fn read(
        list: &mut Vec<u32>,
        start: Option<&ListStart>,
        wanted: usize,
        mut change: impl FnMut(usize, &mut Vec<u32>),
    ) -> (Reading<u32>, usize) {
        let mut pages = 0;
        let fetch = |page: Page| {
            let end = page.end_position().min(list.len());
            let items = list[page.first_position().min(end)..end].to_vec();
            let next = (end < list.len()).then(|| page.at(page.number().checked_add(1).unwrap()));
            let total = Some(list.len() as u64);
            pages += 1;
            change(pages, list);
            Ok::<_, Infallible>(ApiPage { items, has_odd: false, next, total })
        };
        let Ok(reading) = read_list(start, wanted, fetch, u32::to_string, Some);
        (reading, pages)
    }

    fn items(reading: Reading<u32>) -> Vec<u32> {
        let text = format!("{reading:?}");
        let Reading::Done(page) = reading else { panic!("{text}") };
        page.items
    }

    #[test]
    fn a_list_that_nobody_changes_is_read_once_with_few_more_pages_than_it_has() {
        for (length, most) in [(0, 1), (1, 1), (200, 1), (201, 2), (5000, 28), (10_000, 58)] {
            let all: Vec<u32> = (0..length).collect();
            let (reading, pages) = read(&mut all.clone(), None, usize::MAX, |_, _| {});
            assert_eq!(items(reading), all);
            assert!(pages <= most, "{length}: {pages}");
        }
    }

    #[test]
    fn what_is_there_all_the_time_is_listed_whatever_is_deleted_and_made_between_pages() {
        for step in 1..OVERLAP {
            for is_newest_first in [false, true] {
                for is_replaced in [false, true] {
                    let mut list: Vec<u32> = (0..2000).collect();
                    let mut made = 10_000;
                    let (reading, _) = read(&mut list, None, usize::MAX, |_, list| {
                        // Those at the beginning have been read, and the others move up.
                        list.drain(..step.min(list.len()));
                        for _ in (0..step).filter(|_| is_replaced) {
                            made += 1;
                            list.insert(if is_newest_first { 0 } else { list.len() }, made);
                        }
                    });
                    let seen = items(reading);
                    for still in list.iter().filter(|item| **item < 10_000) {
                        assert!(seen.contains(still), "{still} of {step} {is_newest_first} {is_replaced}");
                    }
                    let mut once = seen.clone();
                    once.sort_unstable();
                    once.dedup();
                    assert_eq!(once.len(), seen.len(), "each is listed once");
                }
            }
        }
    }

    #[test]
    fn when_pages_have_nothing_in_common_any_more_the_list_is_read_again() {
        let mut list: Vec<u32> = (0..1000).collect();
        let (reading, pages) = read(&mut list, None, usize::MAX, |page, list| {
            if page == 2 {
                list.drain(..100);
            }
        });
        assert_eq!(items(reading), (100..1000).collect::<Vec<_>>());
        assert!(pages > 6);
        let mut list: Vec<u32> = (0..100_000).collect();
        let (reading, _) = read(&mut list, None, usize::MAX, |_, list| drop(list.drain(..100)));
        assert_eq!(reading, Reading::Lost);
    }

    #[test]
    fn a_start_goes_on_where_the_last_page_ended_unless_the_list_has_changed_before_it() {
        let all: Vec<u32> = (0..1000).collect();
        for wanted in [1, 7, 199, 200, 201, 450] {
            let (mut seen, mut start) = (Vec::new(), None);
            loop {
                let (reading, _) = read(&mut all.clone(), start.as_ref(), wanted, |_, _| {});
                let Reading::Done(page) = reading else { panic!("{wanted}") };
                assert!(page.items.len() == wanted || page.next.is_none());
                seen.extend(page.items);
                start = page.next;
                if start.is_none() {
                    break;
                }
            }
            assert_eq!(seen, all, "{wanted}");
        }
        let start = |offset, after: u32| ListStart { offset, total: Some(1000), after: after.to_string() };
        let moved = |list: &[u32]| read(&mut list.to_vec(), Some(&start(400, 399)), 10, |_, _| {}).0;
        assert_eq!(moved(&all[1..]), Reading::StartMoved);
        assert_eq!(moved(&all[..399]), Reading::StartMoved);
        assert_eq!(items(moved(&all[..405])), [400, 401, 402, 403, 404]);
        assert_eq!(items(moved(&all[..400])), [0; 0]);
    }

    #[test]
    fn a_page_is_as_long_as_it_may_be_and_has_the_position_on_it() {
        for position in 0..20_000 {
            let page = page_with(position);
            assert!((page.first_position()..page.end_position()).contains(&position));
            assert!(page.end_position() - position >= 100, "{position}: {page:?}");
            assert!(page.per_page() <= 200 && page.number() >= NonZeroU32::MIN);
        }
    }
}

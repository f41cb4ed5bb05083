//! How one allocation is cut into pages that serve two models.
//!
//! A page holds all layers of `P` tokens of one model, `P` a power of two chosen per model. The
//! page size is the same for both, so what the two models fill of it rarely agrees: the search
//! below looks for the size that leaves the smallest part of a page empty, summed over the models.
//! The device lays a page out as `[layer][K|V][kv_head][P][D]`; nothing here depends on that.
//!
//! The one invariant: `page_tokens(role) * token_bytes <= page_bytes` for both roles.
//! Read next: [`super::Pool`].

use std::fmt::Write as _;

use crate::config::PAGE_TOKENS_MIN;
use crate::error::KvError;
use crate::ids::Role;

/// The most tokens a page may hold. Only a pair whose KV differs by more than a factor of 256 a
/// token reaches it; longer pages would mostly be tails that no request fills.
const PAGE_TOKENS_MAX: u64 = 4096;

/// The shape of one model's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelKv {
    /// Decoder layers.
    pub layers: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Bytes of one element: 2 for bf16, 4 for f32.
    pub element_bytes: usize,
}

impl ModelKv {
    /// Bytes one token takes: keys and values of every layer. Saturates instead of overflowing,
    /// so a forged shape ends as a pool that is too small.
    #[must_use]
    pub fn token_bytes(&self) -> u64 {
        [self.layers, self.kv_heads, self.head_dim, self.element_bytes]
            .iter()
            .fold(2, |bytes: u64, &factor| bytes.saturating_mul(factor as u64))
    }
}

/// The cut of one allocation into pages: chosen once at start-up, constant afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolLayout {
    /// Bytes of one token by [`Role::index`]; 0 for a role without a model.
    token_bytes: [u64; 2],
    /// Tokens of one page by [`Role::index`]; 0 for a role without a model.
    page_tokens: [usize; 2],
    page_bytes: u64,
    pages: usize,
    pool_bytes: u64,
}

impl PoolLayout {
    /// Chooses the page size for the models that are there (`None`: that role has no model).
    ///
    /// Of all page sizes the one whose empty part, as a share of the page and summed over the
    /// models, is smallest; of equals the smallest page, since every sequence leaves half a page
    /// empty at its end. Page sizes that would give a model no page at all are not considered.
    ///
    /// # Errors
    /// [`KvError::TooSmall`] if `pool_bytes` does not hold one page for each model,
    /// [`KvError::Layout`] if there is no model or a model's shape has a zero.
    pub fn choose(models: [Option<ModelKv>; 2], pool_bytes: u64) -> Result<Self, KvError> {
        let token_bytes = token_bytes_of(models)?;
        let roles = models.iter().flatten().count() as u64;
        let page_bytes_of = |tokens: [u64; 2]| {
            let filled = |role: usize| tokens[role].saturating_mul(token_bytes[role]);
            filled(0).max(filled(1))
        };
        // The empty part of a page, summed over the models. One of the two fills it to the end.
        let waste_of = |tokens: [u64; 2], page_bytes: u64| -> u128 {
            (0..2)
                .filter(|&role| models[role].is_some())
                .map(|role| u128::from(page_bytes - tokens[role] * token_bytes[role]))
                .sum()
        };

        let mut best: Option<([u64; 2], u64, u128)> = None;
        for draft in page_token_choices(models[0]) {
            for base in page_token_choices(models[1]) {
                let tokens = [draft, base];
                let page_bytes = page_bytes_of(tokens);
                if page_bytes > pool_bytes / roles {
                    continue;
                }
                let waste = waste_of(tokens, page_bytes);
                let better = best.is_none_or(|(_, best_bytes, best_waste)| {
                    // waste / page_bytes against best_waste / best_bytes, without rounding.
                    let (here, there) =
                        (waste * u128::from(best_bytes), best_waste * u128::from(page_bytes));
                    here < there || (here == there && page_bytes < best_bytes)
                });
                if better {
                    best = Some((tokens, page_bytes, waste));
                }
            }
        }

        let Some((tokens, page_bytes, _)) = best else {
            let smallest = models.map(|model| model.map_or(0, |_| u64::from(PAGE_TOKENS_MIN)));
            return Err(KvError::TooSmall {
                pool_bytes,
                context: PAGE_TOKENS_MIN,
                needed_bytes: page_bytes_of(smallest).saturating_mul(roles),
            });
        };
        // A page number is 32 bits wide.
        let pages = (pool_bytes / page_bytes).min(u64::from(u32::MAX)) as usize;
        let page_tokens = tokens.map(|tokens| tokens as usize);
        Ok(Self { token_bytes, page_tokens, page_bytes, pages, pool_bytes })
    }

    /// Tokens of `role`'s model one page holds; 0 if that role has no model.
    #[must_use]
    pub fn page_tokens(&self, role: Role) -> usize {
        self.page_tokens[role.index()]
    }

    /// Bytes of one page, the same for both models.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// Pages of the pool.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes the pages take together: what the device has to allocate, never more than asked for.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.page_bytes * self.pages as u64
    }

    /// Bytes of a page that `role`'s model leaves empty; 0 if that role has no model.
    #[must_use]
    pub fn waste_bytes(&self, role: Role) -> u64 {
        match self.page_tokens(role) {
            0 => 0,
            tokens => self.page_bytes - tokens as u64 * self.token_bytes[role.index()],
        }
    }

    /// Pages that `tokens` tokens of `role`'s model take; 0 if that role has no model.
    #[must_use]
    pub fn pages_for(&self, role: Role, tokens: usize) -> usize {
        match self.page_tokens(role) {
            0 => 0,
            page_tokens => tokens.div_ceil(page_tokens),
        }
    }

    /// Pages one request of `context` tokens takes on all models together, each with a scratch
    /// suffix of `scratch_tokens` beside it (scoring suffixes have pages of their own).
    #[must_use]
    pub fn request_pages(&self, context: u32, scratch_tokens: u32) -> usize {
        Role::ALL
            .into_iter()
            .map(|role| {
                self.pages_for(role, context as usize)
                    + self.pages_for(role, scratch_tokens as usize)
            })
            .sum()
    }

    /// Refuses a pool that one request of `context` tokens with a scratch suffix of
    /// `scratch_tokens` could not live in even if it were alone.
    ///
    /// # Errors
    /// [`KvError::TooSmall`] with the bytes that would do.
    pub fn check_capacity(&self, context: u32, scratch_tokens: u32) -> Result<(), KvError> {
        let needed_pages = self.request_pages(context, scratch_tokens);
        if needed_pages <= self.pages {
            return Ok(());
        }
        Err(KvError::TooSmall {
            pool_bytes: self.pool_bytes,
            context,
            needed_bytes: self.page_bytes.saturating_mul(needed_pages as u64),
        })
    }

    /// One line for start-up: pages, and per model the tokens a page holds and what stays empty.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!(
            "KV pool: {} pages of {} ({} in all)",
            self.pages,
            binary_size(self.page_bytes),
            binary_size(self.used_bytes())
        );
        for role in Role::ALL.into_iter().filter(|&role| self.page_tokens(role) > 0) {
            let waste_bytes = self.waste_bytes(role);
            let percent = 100.0 * waste_bytes as f64 / self.page_bytes as f64;
            // Writing into a `String` cannot fail.
            let _ = write!(
                text,
                "; {role}: {} tokens a page, {percent:.1} % of it empty ({})",
                self.page_tokens(role),
                binary_size(waste_bytes)
            );
        }
        text
    }

    /// A layout with pages smaller than [`PoolLayout::choose`] would give, so that tests reach
    /// page boundaries in a few tokens. A role with 0 tokens a page has no model.
    #[cfg(test)]
    pub(super) fn with_page_tokens(page_tokens: [usize; 2], pages: usize) -> Self {
        let page_bytes = page_tokens.iter().copied().max().expect("two roles") as u64;
        let token_bytes = page_tokens.map(|tokens| u64::from(tokens > 0));
        let pool_bytes = page_bytes * pages as u64;
        Self { token_bytes, page_tokens, page_bytes, pages, pool_bytes }
    }
}

/// Bytes of a token by role, 0 where there is no model; refuses shapes without any bytes.
fn token_bytes_of(models: [Option<ModelKv>; 2]) -> Result<[u64; 2], KvError> {
    if models.iter().all(Option::is_none) {
        return Err(KvError::Layout {
            what: "models that share the KV pool".into(),
            expected: "one or two".into(),
            got: "none".into(),
        });
    }
    let mut token_bytes = [0; 2];
    for role in Role::ALL {
        let Some(model) = models[role.index()] else { continue };
        token_bytes[role.index()] = model.token_bytes();
        if model.token_bytes() == 0 {
            return Err(KvError::Layout {
                what: format!("KV shape of the {role} model"),
                expected: "layers, KV heads, head size and element size of at least 1".into(),
                got: format!(
                    "{} layers, {} KV heads, head size {}, {} bytes an element",
                    model.layers, model.kv_heads, model.head_dim, model.element_bytes
                ),
            });
        }
    }
    Ok(token_bytes)
}

/// The tokens a page may hold: powers of two, or only 0 for a role without a model.
fn page_token_choices(model: Option<ModelKv>) -> impl Iterator<Item = u64> {
    let first = if model.is_some() { u64::from(PAGE_TOKENS_MIN) } else { 0 };
    // Doubling 0 gives 0: the second one ends the sequence.
    std::iter::successors(Some(first), |&tokens| {
        (0 < tokens && tokens < PAGE_TOKENS_MAX).then_some(tokens * 2)
    })
}

/// A size as people read it, such as `3.5 MiB`.
fn binary_size(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            let digits = usize::from(unit != "B");
            return format!("{size:.digits$} {unit}");
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(layers: usize, kv_heads: usize, head_dim: usize) -> ModelKv {
        ModelKv { layers, kv_heads, head_dim, element_bytes: 2 }
    }

    /// A model of `2 * units` bytes a token.
    fn units(units: usize) -> ModelKv {
        ModelKv { layers: units, kv_heads: 1, head_dim: 1, element_bytes: 1 }
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn no_page_size_wastes_less_than_the_chosen_one_and_no_smaller_one_as_little() {
        // Tries every page size in bytes, not only those a model fills to the end.
        for (draft, base) in (1..24).flat_map(|d| (1..24).map(move |b| (d, b))) {
            let models = [Some(units(draft)), Some(units(base))];
            let layout = PoolLayout::choose(models, GIB).unwrap();
            let token_bytes = [2 * draft as u64, 2 * base as u64];
            let smallest = 16 * token_bytes[0].max(token_bytes[1]);
            let share = |page: u64| {
                let empty: u64 = token_bytes
                    .iter()
                    .map(|&token| {
                        let fitting = page / token;
                        page - (1 << fitting.ilog2()) * token
                    })
                    .sum();
                (empty, page)
            };
            let chosen = share(layout.page_bytes());
            assert_eq!(
                chosen.0,
                layout.waste_bytes(Role::Draft) + layout.waste_bytes(Role::Base),
                "draft {draft}, base {base}"
            );
            for page in smallest..=4 * smallest {
                let other = share(page);
                let (a, b) = (other.0 * chosen.1, chosen.0 * other.1);
                assert!(a >= b, "draft {draft}, base {base}: {other:?} beats {chosen:?}");
                assert!(a > b || page >= chosen.1, "draft {draft}, base {base}: {page} is smaller");
            }
        }
    }

    #[test]
    fn a_page_of_a_32b_and_a_1_5b_model_is_what_a_pencil_says() {
        // 64 layers x 8 heads x 128 x 2 (K, V) x 2 bytes = 256 KiB; 28 x 2 x 128 x 4 = 28 KiB.
        // 16 x 256 KiB = 4 MiB; 128 x 28 KiB = 3.5 MiB: an eighth stays empty. The other way
        // round, 256 x 28 KiB = 7 MiB against 4 MiB, three sevenths would.
        let models = [Some(shape(28, 2, 128)), Some(shape(64, 8, 128))];
        let layout = PoolLayout::choose(models, 8 * GIB).unwrap();
        assert_eq!(layout.page_bytes(), 4 << 20);
        assert_eq!(layout.page_tokens(Role::Base), 16);
        assert_eq!(layout.page_tokens(Role::Draft), 128);
        assert_eq!(layout.waste_bytes(Role::Base), 0);
        assert_eq!(layout.waste_bytes(Role::Draft), 512 << 10);
        assert_eq!(layout.pages(), 2048);
        assert_eq!(
            layout.describe(),
            "KV pool: 2048 pages of 4.0 MiB (8.0 GiB in all); draft: 128 tokens a page, 12.5 % of \
             it empty (512.0 KiB); base: 16 tokens a page, 0.0 % of it empty (0 B)"
        );
    }

    #[test]
    fn equal_models_get_the_smallest_page_and_waste_nothing() {
        let model = shape(24, 2, 64);
        let layout = PoolLayout::choose([Some(model); 2], GIB).unwrap();
        assert_eq!(layout.page_bytes(), 16 * model.token_bytes());
        for role in Role::ALL {
            assert_eq!(layout.page_tokens(role), 16);
            assert_eq!(layout.waste_bytes(role), 0);
        }
    }

    #[test]
    fn one_model_alone_gets_all_pages() {
        let model = shape(24, 2, 64);
        let layout = PoolLayout::choose([None, Some(model)], GIB).unwrap();
        assert_eq!(layout.page_tokens(Role::Draft), 0);
        assert_eq!(layout.page_tokens(Role::Base), 16);
        assert_eq!(layout.waste_bytes(Role::Draft), 0);
        assert_eq!(layout.request_pages(32, 16), 3);
        assert!(!layout.describe().contains("draft"));
    }

    #[test]
    fn a_pool_without_room_for_one_page_of_each_model_is_refused_with_the_bytes_it_lacks() {
        let model = shape(2, 1, 16);
        let page_bytes = 16 * model.token_bytes();
        let choose = |bytes| PoolLayout::choose([Some(model); 2], bytes);
        assert_eq!(choose(2 * page_bytes).unwrap().pages(), 2);
        assert_eq!(
            choose(2 * page_bytes - 1),
            Err(KvError::TooSmall {
                pool_bytes: 2 * page_bytes - 1,
                context: 16,
                needed_bytes: 2 * page_bytes
            })
        );
    }

    #[test]
    fn a_pool_too_small_for_one_request_is_refused_and_the_bytes_it_names_suffice() {
        let models = [Some(shape(28, 2, 128)), Some(shape(64, 8, 128))];
        let (context, scratch) = (8192, 100);
        let Err(KvError::TooSmall { needed_bytes, .. }) =
            PoolLayout::choose(models, GIB).unwrap().check_capacity(context, scratch)
        else {
            panic!("1 GiB holds no request of 8192 tokens");
        };
        // Base: 512 + 7 pages, draft: 64 + 1 pages.
        assert_eq!(needed_bytes, (512 + 7 + 64 + 1) * (4 << 20));
        let enough = PoolLayout::choose(models, needed_bytes).unwrap();
        assert_eq!(enough.check_capacity(context, scratch), Ok(()));
        let short = PoolLayout::choose(models, needed_bytes - 1).unwrap();
        assert!(short.check_capacity(context, scratch).is_err());
    }

    #[test]
    fn shapes_with_a_zero_and_pools_without_a_model_are_refused() {
        let zero = ModelKv { layers: 0, ..shape(1, 1, 1) };
        let refused = PoolLayout::choose([Some(zero), Some(shape(1, 1, 1))], GIB);
        assert!(matches!(refused, Err(KvError::Layout { .. })), "{refused:?}");
        assert!(matches!(PoolLayout::choose([None; 2], GIB), Err(KvError::Layout { .. })));
    }

    #[test]
    fn a_forged_shape_ends_as_a_pool_too_small_and_not_as_an_overflow() {
        let forged = ModelKv {
            layers: usize::MAX,
            kv_heads: usize::MAX,
            head_dim: usize::MAX,
            element_bytes: 2,
        };
        for pool_bytes in [0, GIB, u64::MAX - 1] {
            let refused = PoolLayout::choose([Some(forged), Some(shape(1, 1, 1))], pool_bytes);
            assert!(matches!(refused, Err(KvError::TooSmall { .. })), "{refused:?}");
        }
    }
}

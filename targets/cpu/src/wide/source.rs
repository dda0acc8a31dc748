//! The first factor of a product: rows as they lie in memory, or the neighbourhoods of a picture's pixels.

/// f32 activations, row by row.
pub(crate) trait Source: Sync {
    /// Where a row's inputs are.
    type Place: Copy;

    /// Rows, M.
    fn len(&self) -> usize;

    /// Inputs of each row, K.
    fn depth(&self) -> usize;

    /// Must be `#[inline(always)]`, as [`Source::run`].
    fn place(&self, row: usize) -> Self::Place;

    /// The inputs from `k` on, as far as they lie side by side: at least one. None are so many zeros.
    fn run(&self, place: Self::Place, k: usize) -> (Option<&[f32]>, usize);
}

/// `[M, K]`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    values: &'a [f32],
    inputs: usize,
}

impl<'a> Rows<'a> {
    /// # Panics
    /// If `values` are not whole rows.
    pub(crate) fn new(values: &'a [f32], inputs: usize) -> Self {
        assert!(values.len().is_multiple_of(inputs), "{} values in rows of {inputs}", values.len());
        Rows { values, inputs }
    }
}

impl Source for Rows<'_> {
    type Place = usize;

    fn len(&self) -> usize {
        self.values.len() / self.inputs
    }

    fn depth(&self) -> usize {
        self.inputs
    }

    #[inline(always)]
    fn place(&self, row: usize) -> usize {
        row * self.inputs
    }

    #[inline(always)]
    fn run(&self, place: usize, k: usize) -> (Option<&[f32]>, usize) {
        (Some(&self.values[place + k..place + self.inputs]), self.inputs - k)
    }
}

/// The geometry of a 3x3 convolution with padding 1 over a picture of `height x width`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Distance of neighbouring outputs.
    pub(crate) stride: usize,
    /// Distance at which the stored input pixels lie in the picture; between them it is zero.
    pub(crate) spread: usize,
    /// How often each stored pixel comes in the picture both ways. Either this or `spread` is 1.
    pub(crate) repeat: usize,
}

impl Grid {
    /// Height and width of what is stored of the picture.
    pub(crate) fn stored_size(&self) -> (usize, usize) {
        let every = self.spread * self.repeat;
        (self.height.div_ceil(every), self.width.div_ceil(every))
    }

    /// Height and width of the result.
    pub(crate) fn output_size(&self) -> (usize, usize) {
        (self.height.div_ceil(self.stride), self.width.div_ceil(self.stride))
    }
}

/// The neighbourhoods of all output pixels of a batch, in the order (ky, kx, channel), zero outside the picture.
pub(crate) struct Neighbourhoods<'a> {
    values: &'a [f32],
    channels: usize,
    grid: Grid,
}

impl<'a> Neighbourhoods<'a> {
    /// # Panics
    /// If `values` are not whole pictures of `channels` channels.
    pub(crate) fn new(values: &'a [f32], channels: usize, grid: Grid) -> Self {
        let (height, width) = grid.stored_size();
        assert!(values.len().is_multiple_of(height * width * channels), "{} values, {grid:?}", values.len());
        Neighbourhoods { values, channels, grid }
    }
}

impl Source for Neighbourhoods<'_> {
    /// Picture, and the pixel right of and below which the neighbourhood begins.
    type Place = (usize, usize, usize);

    fn len(&self) -> usize {
        let ((stored_height, stored_width), (height, width)) = (self.grid.stored_size(), self.grid.output_size());
        self.values.len() / (stored_height * stored_width * self.channels) * height * width
    }

    fn depth(&self) -> usize {
        9 * self.channels
    }

    #[inline(always)]
    fn place(&self, row: usize) -> (usize, usize, usize) {
        let (height, width) = self.grid.output_size();
        let (picture, pixel) = (row / (height * width), row % (height * width));
        (picture, pixel / width * self.grid.stride, pixel % width * self.grid.stride)
    }

    #[inline(always)]
    fn run(&self, (picture, top, left): (usize, usize, usize), k: usize) -> (Option<&[f32]>, usize) {
        let (tap, channel) = (k / self.channels, k % self.channels);
        // counted from 1, so that the row above the picture is 0
        let (row, column) = (top + tap / 3, left + tap % 3);
        let len = self.channels - channel;
        let inside = (1..=self.grid.height).contains(&row) && (1..=self.grid.width).contains(&column);
        if !inside || (row - 1) % self.grid.spread != 0 || (column - 1) % self.grid.spread != 0 {
            return (None, len);
        }
        let (height, width) = self.grid.stored_size();
        let every = self.grid.spread * self.grid.repeat;
        let pixel = (picture * height + (row - 1) / every) * width + (column - 1) / every;
        (Some(&self.values[pixel * self.channels + channel..][..len]), len)
    }
}

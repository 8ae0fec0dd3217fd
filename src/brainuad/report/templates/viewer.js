"use strict";
// One scan at a time: NiiVue draws scan and map, a second canvas above it the outlines of findings and annotation.
// Volumes lie on a grid whose axes are right, anterior, superior, so indices and mm differ by a factor and a shift.

const PLANES = [[0, 1, 2], [0, 2, 1], [1, 2, 0]]; // axial, coronal, sagittal: across, up, through
const OUTLINES = { findings: "#00e5ff", lesion: "#39ff14" };

async function openCanvas(canvas, look = {}) {
  const nv = new niivue.Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [1, 1, 1, 0.75],
    crosshairWidth: 0.5,
    crosshairWidthUnit: "mm",
    crosshairGap: 6,
    dragAndDropEnabled: false,
    fontColor: [0.8, 0.8, 0.8, 1],
    isRadiologicalConvention: true,
    isSliceMM: true,
    loadingText: "",
    logLevel: "error",
    multiplanarPadPixels: 16, // so that one plane's L and the next one's P do not read as "LP"
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    scrollRequiresFocus: true,
    showAllOrientationMarkers: true,
    sliceType: niivue.SLICE_TYPE.MULTIPLANAR,
    tileMargin: 0,
    ...look,
  });
  await nv.attachToCanvas(canvas);
  return nv;
}

// "bare" is the canvas on the left when scan and map are side by side; it shows what lies under the map
async function createViewer(canvas, outlines, bare, onMove) {
  const nv = await openCanvas(canvas);
  let left = null;
  // alpha 0 for what lies below the first colour, then red to yellow
  nv.addColormap("brainuad", { R: [255, 255, 255], G: [0, 0, 255], B: [0, 0, 0], A: [0, 255, 255], I: [0, 1, 255] });
  const state = { under: "scan", map: true, opacity: 0.6, darkest: 0, brightest: 1, findings: true, lesion: true, selected: 0, rare: Infinity, beside: false };
  let volumes = {};
  let grid = null;
  let shows = 0;

  // returns whether it is still this scan that is wanted
  async function show({ layers, scale, rare }) {
    const turn = ++shows;
    const loaded = {};
    for (const [name, base64] of Object.entries(layers)) {
      const look = name === "anomaly"
        ? { colormap: "brainuad", cal_min: scale.first, cal_max: scale.full, opacity: state.opacity }
        : { colormap: "gray", opacity: 1 };
      loaded[name] = await niivue.NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, ...look });
    }
    if (turn !== shows) return false;
    volumes = loaded;
    if (!volumes[state.under]) state.under = volumes.scan ? "scan" : "reconstruction";
    const header = volumes.anomaly.hdr;
    grid = { shape: header.dims.slice(1, 4), voxel: header.pixDims[1], origin: header.affine.slice(0, 3).map((row) => row[3]) };
    state.selected = 0;
    state.rare = rare ?? Infinity; // findings up to this label are rare in health, or nobody knows
    arrange();
    return true;
  }

  function arrange() { // NiiVue blends all voxels anew, so this is for when layers change
    const under = volumes[state.under];
    volumes.anomaly.opacity = state.map ? state.opacity : 0;
    if (under) [under.cal_min, under.cal_max] = [state.darkest, state.brightest];
    nv.volumes = under ? [under, volumes.anomaly] : [volumes.anomaly];
    nv.back = nv.volumes[0];
    nv.overlays = nv.volumes.slice(1);
    nv.updateGLVolume();
    if (state.beside) arrangeLeft();
  }

  function arrangeLeft() {
    left.volumes = nv.volumes.slice(0, 1);
    left.back = left.volumes[0];
    left.overlays = [];
    left.updateGLVolume();
  }

  async function setBeside(beside) {
    left ??= await openLeft();
    state.beside = beside;
    bare.parentElement.hidden = !beside;
    [nv, left].forEach((one) => one.resizeListener());
    nv.setSliceType(beside ? niivue.SLICE_TYPE.AXIAL : niivue.SLICE_TYPE.MULTIPLANAR);
    if (beside) arrangeLeft();
    nv.drawScene();
  }

  async function openLeft() {
    const opened = await openCanvas(bare, { sliceType: niivue.SLICE_TYPE.AXIAL });
    opened.onLocationChange = () => moveTo(Array.from(opened.frac2mm(opened.scene.crosshairPos)).slice(0, 3));
    return opened;
  }

  function set(changes) {
    const layers = ["under", "map", "opacity", "darkest", "brightest"].some((key) => key in changes && changes[key] !== state[key]);
    Object.assign(state, changes);
    if (layers) arrange(); else nv.drawScene();
  }

  function index(mm) {
    return mm.map((value, axis) => Math.round((value - grid.origin[axis]) / grid.voxel));
  }

  function at(name, [i, j, k]) {
    const [nx, ny, nz] = grid.shape;
    const volume = volumes[name];
    if (!volume || i < 0 || j < 0 || k < 0 || i >= nx || j >= ny || k >= nz) return 0;
    return Math.abs(volume.img[i + nx * (j + ny * k)] * (volume.hdr.scl_slope || 1)); // negative where it has no colour
  }

  function here() {
    return Array.from(nv.frac2mm(nv.scene.crosshairPos)).slice(0, 3);
  }

  function moveTo(mm) {
    const inside = mm.map((value, axis) =>
      Math.min(Math.max(value, grid.origin[axis]), grid.origin[axis] + (grid.shape[axis] - 1) * grid.voxel));
    nv.scene.crosshairPos = nv.mm2frac(inside);
    nv.drawScene();
    nv.createOnLocationChange();
  }

  function outline(pen, tile, name, colour) {
    const [across, up, through] = PLANES[tile.axCorSag];
    const slice = Math.min(Math.floor(tile.sliceFrac * grid.shape[through]), grid.shape[through] - 1);
    const label = (a, b) => {
      const voxel = [0, 0, 0];
      [voxel[across], voxel[up], voxel[through]] = [a, b, slice];
      return at(name, voxel);
    };
    let [left, top, width, height] = tile.leftTopWidthHeight;
    const mirrored = width < 0;
    if (mirrored) [left, width] = [left + width, -width];
    const x = (a) => {
      const part = (grid.origin[across] + a * grid.voxel - tile.leftTopMM[0]) / tile.fovMM[0];
      return left + (mirrored ? 1 - part : part) * width;
    };
    const y = (b) => top + (1 - (grid.origin[up] + b * grid.voxel - tile.leftTopMM[1]) / tile.fovMM[1]) * height;
    const thin = new Path2D();
    const thick = new Path2D();
    const faint = new Path2D();
    for (let b = 0; b <= grid.shape[up]; b++) {
      for (let a = 0; a <= grid.shape[across]; a++) {
        const [own, before, below] = [label(a, b), label(a - 1, b), label(a, b - 1)];
        const path = (other) => {
          if (name !== "findings") return thin;
          if (state.selected && [own, other].includes(state.selected)) return thick;
          return [own, other].some((found) => found > 0 && found <= state.rare) ? thin : faint;
        };
        if (own !== before) {
          path(before).moveTo(x(a - 0.5), y(b - 0.5));
          path(before).lineTo(x(a - 0.5), y(b + 0.5));
        }
        if (own !== below) {
          path(below).moveTo(x(a - 0.5), y(b - 0.5));
          path(below).lineTo(x(a + 0.5), y(b - 0.5));
        }
      }
    }
    const ratio = window.devicePixelRatio || 1;
    pen.save();
    pen.beginPath();
    pen.rect(left, top, width, height);
    pen.clip();
    pen.lineCap = "round";
    pen.strokeStyle = colour;
    pen.lineWidth = ratio;
    pen.globalAlpha = 0.5;
    pen.stroke(faint);
    pen.globalAlpha = 1;
    pen.lineWidth = 1.5 * ratio;
    pen.stroke(thin);
    pen.lineWidth = 3 * ratio;
    pen.stroke(thick);
    pen.restore();
  }

  function drawOutlines() {
    if (outlines.width !== canvas.width) outlines.width = canvas.width;
    if (outlines.height !== canvas.height) outlines.height = canvas.height;
    // On the CPU: Chromium's accelerated canvas may keep showing old outlines after a clear that nothing follows.
    const pen = outlines.getContext("2d", { willReadFrequently: true });
    pen.clearRect(0, 0, outlines.width, outlines.height);
    if (!grid) return;
    for (const tile of nv.screenSlices) {
      if (tile.axCorSag > 2) continue;
      if (state.lesion && volumes.lesion) outline(pen, tile, "lesion", OUTLINES.lesion);
      if (state.findings && volumes.findings) outline(pen, tile, "findings", OUTLINES.findings);
    }
  }

  const drawScene = nv.drawScene.bind(nv);
  nv.drawScene = (...values) => {
    if (!canvas.width || !canvas.height) return undefined; // not laid out: once it is, NiiVue draws again
    const result = drawScene(...values);
    drawOutlines();
    if (state.beside) {
      left.scene.crosshairPos = nv.scene.crosshairPos;
      left.scene.pan2Dxyzmm = nv.scene.pan2Dxyzmm;
      left.drawScene();
    }
    return result;
  };
  nv.onLocationChange = () => onMove(here(), at("anomaly", index(here())), at("findings", index(here())));

  return {
    show, set, setBeside, moveTo, here, state,
    has: (name) => name in volumes,
    step: (axis, by) => moveTo(here().map((value, a) => (a === axis ? value + by * grid.voxel : value))),
    range: (axis) => [grid.origin[axis], grid.origin[axis] + (grid.shape[axis] - 1) * grid.voxel, grid.voxel],
  };
}

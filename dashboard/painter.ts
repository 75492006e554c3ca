/**
 * Draws what may be much, a bounded number of things in each frame: onto a canvas that nobody sees, which is shown as it is whole.
 * Until then what was shown last stays, moved as the view has been since. Runs in a worker of its own, so that the page never waits for it.
 */

/** Where the world is on the canvas, in CSS pixels. */
export interface Transform {
  scale: number;
  x: number;
  y: number;
}

export interface Scene {
  /** Of things, drawn in order from 0. */
  readonly length: number;
  /** @returns false: it is not in view, and was not drawn */
  draw(context: OffscreenCanvasRenderingContext2D, index: number, transform: Transform): boolean;
  /** On top of all, once: a few things. */
  finish(context: OffscreenCanvasRenderingContext2D, transform: Transform): void;
}

/** For whoever wants to know how much a frame is. */
export interface Drawn {
  /** Pictures. */
  whole: number;
  frames: number;
  things: number;
  /** In one frame. */
  most: number;
}

/** Things that are drawn in one frame. */
export const MOST_A_FRAME = 400;
/** To pass over what is not in view costs little. */
const MOST_LOOKED_AT = 20_000;

export class Painter {
  readonly #canvas: OffscreenCanvas;
  readonly #visible: OffscreenCanvasRenderingContext2D;
  readonly #back = new OffscreenCanvas(1, 1);
  readonly #context: OffscreenCanvasRenderingContext2D;
  readonly #onWhole: (drawn: Drawn) => void;
  readonly #drawn: Drawn = { whole: 0, frames: 0, things: 0, most: 0 };
  #ratio = 1;
  #scene: Scene = { length: 0, draw: () => false, finish: () => undefined };
  #transform: Transform = { scale: 1, x: 0, y: 0 };
  /** Of what is shown. */
  #shown: Transform | undefined;
  #next = 0;
  #frame = 0;
  /** Something changed after the drawing began: it begins anew when it is whole. */
  #isStale = false;
  #hasMoved = false;

  /** @param onWhole told each time that all is drawn */
  constructor(canvas: OffscreenCanvas, onWhole: (drawn: Drawn) => void) {
    this.#canvas = canvas;
    this.#onWhole = onWhole;
    this.#visible = canvas.getContext('2d')!;
    this.#context = this.#back.getContext('2d')!;
  }

  /** In CSS pixels. @param ratio of the device's pixels to these */
  resize(cssWidth: number, cssHeight: number, ratio: number): void {
    this.#ratio = ratio;
    const [width, height] = [Math.max(1, Math.round(cssWidth * ratio)), Math.max(1, Math.round(cssHeight * ratio))];
    if (this.#canvas.width === width && this.#canvas.height === height) return;
    for (const canvas of [this.#canvas, this.#back]) {
      canvas.width = width;
      canvas.height = height;
    }
    this.#shown = undefined;
    if (this.#scene.length > 0) this.paint(this.#scene, this.#transform);
  }

  /** What is being drawn is finished first, if the view stays: figures come more often than a large drawing is whole. */
  paint(scene: Scene, transform: Transform): void {
    const hasMoved = transform.scale !== this.#transform.scale || transform.x !== this.#transform.x || transform.y !== this.#transform.y;
    this.#hasMoved ||= hasMoved;
    const isDrawing = this.#frame !== 0 && this.#next > 0;
    if (isDrawing && !hasMoved && scene.length === this.#scene.length) this.#isStale = true;
    else this.#next = 0;
    this.#scene = scene;
    this.#transform = transform;
    this.#frame ||= requestAnimationFrame(() => this.#step());
  }

  #step(): void {
    this.#frame = 0;
    const ratio = this.#ratio;
    const { scale, x, y } = this.#transform;
    if (this.#hasMoved) this.#move();
    this.#hasMoved = false;
    const context = this.#context;
    if (this.#next === 0) {
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, this.#back.width, this.#back.height);
    }
    context.setTransform(scale * ratio, 0, 0, scale * ratio, x * ratio, y * ratio);
    let drawn = 0;
    const end = Math.min(this.#scene.length, this.#next + MOST_LOOKED_AT);
    while (this.#next < end && drawn < MOST_A_FRAME) if (this.#scene.draw(context, this.#next++, this.#transform)) drawn++;
    this.#note(drawn);
    if (this.#next < this.#scene.length) {
      this.#frame = requestAnimationFrame(() => this.#step());
      return;
    }
    this.#scene.finish(context, this.#transform);
    this.#visible.setTransform(1, 0, 0, 1, 0, 0);
    this.#visible.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#visible.drawImage(this.#back, 0, 0);
    this.#shown = this.#transform;
    this.#next = 0;
    this.#drawn.whole++;
    this.#onWhole({ ...this.#drawn });
    if (this.#isStale) {
      this.#isStale = false;
      this.#frame = requestAnimationFrame(() => this.#step());
    }
  }

  /** What is shown, to where it is now. */
  #move(): void {
    if (!this.#shown) return;
    const ratio = this.#ratio;
    const factor = this.#transform.scale / this.#shown.scale;
    const copy = this.#visible.canvas;
    this.#visible.globalCompositeOperation = 'copy';
    this.#visible.setTransform(factor, 0, 0, factor, (this.#transform.x - this.#shown.x * factor) * ratio, (this.#transform.y - this.#shown.y * factor) * ratio);
    this.#visible.drawImage(copy, 0, 0);
    this.#visible.globalCompositeOperation = 'source-over';
    this.#shown = this.#transform;
  }

  #note(things: number): void {
    this.#drawn.frames++;
    this.#drawn.things += things;
    this.#drawn.most = Math.max(this.#drawn.most, things);
  }
}

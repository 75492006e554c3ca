/** Draws the graph onto the page's canvas, apart from the page. */
import type { Figures, FromDrawer, Structure, ToDrawer } from './messages.js';
import { Painter, type Transform } from './painter.js';
import { GraphScene, type Colours } from './scene.js';

const scope = self as unknown as { postMessage(message: FromDrawer): void; addEventListener(type: 'message', listener: (event: MessageEvent<ToDrawer>) => void): void };

let painter: Painter | undefined;
let colours: Colours | undefined;
let scene: GraphScene | undefined;
let structure: Structure | undefined;
let figures: Figures | undefined;
let size = { width: 1, height: 1 };
let view: { transform: Transform; selected: number } = { transform: { scale: 1, x: 0, y: 0 }, selected: -1 };

function paint(): void {
  if (!scene || !colours) return;
  scene.colours = colours;
  scene.size = size;
  scene.selected = view.selected;
  painter?.paint(scene, view.transform);
}

scope.addEventListener('message', ({ data }) => {
  if (data.type === 'start') {
    colours = data.colours;
    painter = new Painter(data.canvas, (drawn) => scope.postMessage({ type: 'drawn', drawn }));
  } else if (data.type === 'size') {
    size = { width: data.width, height: data.height };
    painter?.resize(data.width, data.height, data.ratio);
  } else if (data.type === 'colours') colours = data.colours;
  else if (data.type === 'view') view = data;
  else if (data.type === 'figures') {
    figures = data;
    if (scene) scene.figures = data;
  } else {
    structure = data;
    if (!colours) return;
    scene = new GraphScene(structure, colours, size);
    if (figures) scene.figures = figures;
    // What is where comes next.
    return;
  }
  paint();
});

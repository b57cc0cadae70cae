// Everything is defined: fill the page, draw what is visible, then the rest.

heading();
if (DATA.comparison) addPanel("compared", "Compared", comparison());
addPanel("curves", "Curves", ...curves().filter((part) => part !== null));
addPanel("samples", "Samples", ...perRun(samples));
if (LOOK) addPanel("model", "Model", ...look());
if (DATA.runs.every((run) => Object.keys(run.layers).length)) addPanel("layers", "Layers", ...perRun(layers));
addPanel("happened", "What happened", ...perRun(happened));
addPanel("settings", "Settings", ...perRun(settings));
show(panels[0].id);
nameTheme();
drawing = false;
drawWhatIsLeft();

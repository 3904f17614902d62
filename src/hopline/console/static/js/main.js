// What every page runs. Each module finds what it works on by data attributes, and does nothing on a page without it.

import { startCharts } from "./charts.js";
import { startConfirming } from "./confirm.js";
import { startCopying } from "./copy.js";
import { startKeys } from "./keys.js";
import { startLive } from "./live.js";
import { startMenus } from "./menus.js";
import { startTheme } from "./theme.js";
import { startTimes } from "./time.js";

startTheme();
startTimes();
startMenus();
startConfirming();
startCopying();
startKeys();
startLive();
startCharts();

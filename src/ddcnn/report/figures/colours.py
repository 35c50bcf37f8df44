"""The colours of Okabe and Ito, which colour-blind readers can tell apart too, as they can the maps cividis and Blues."""

BLUE, ORANGE, GREEN, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#999999"

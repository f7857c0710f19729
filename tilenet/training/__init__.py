"""Training: pairs of images and labels in, a model file out.

data.py        pairs from a folder, split by seed
targets.py     the class of each pixel, and its weight in the loss
augment.py     crops, deformed and recoloured at random
stain.py       blue and brown stains and holes, painted onto images of nuclei
loss.py        the loss, the optimizer and the learning rate
network.py     the network before training, and its card
recipe.py      every option, in one place
validation.py  whole images through the network, scored
history.py     the curves, as CSV and as a picture, with what the network predicts for a few validation images
checkpoint.py  the state from which a killed training resumes
loop.py        `train`
"""

from tilenet.training.recipe import Recipe as Recipe

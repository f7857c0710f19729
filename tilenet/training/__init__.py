"""Training: pairs of images and labels in, a model file out.

recipe             every option, in one place
data               pairs from a folder, split by seed
targets            the class of each pixel, and its weight in the loss
augment, stain     a crop, deformed and recoloured; stains and holes, painted onto images of nuclei
crops              the crops of an epoch
network, loss      the network before training, and its card; loss, optimizer and learning rate
validation         whole images through the network, scored
history            the curves, as CSV and as a picture, with what the network predicts for a few validation images
checkpoint         the state from which a killed training resumes
loop               `train`
"""

from tilenet.training.recipe import Recipe as Recipe
